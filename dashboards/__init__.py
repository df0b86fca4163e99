"""The staff app: queue and case pages for people with an account."""
