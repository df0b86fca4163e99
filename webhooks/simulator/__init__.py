"""The provider's fake: what tests and the demo use in place of Twilio. It is never part of a real installation."""
