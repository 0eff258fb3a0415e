"""What the adapters of the clouds share: accounts, credentials and the meaning of errors."""
