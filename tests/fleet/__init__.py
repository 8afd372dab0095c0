"""A fleet: real processes on a real Redis act as one towards the gateway, and as themselves when Redis is gone."""
