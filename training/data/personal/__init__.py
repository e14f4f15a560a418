"""Personal data and secrets in text: found by patterns and check digits, redacted on request."""
