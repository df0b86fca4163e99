"""The public app: provider webhooks and forms. Faces machines and the public; holds no private key."""
