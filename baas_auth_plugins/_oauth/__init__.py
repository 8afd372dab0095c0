"""What is said between a client and a gateway: the RFCs and the gateways' pages, as data and pure functions."""
