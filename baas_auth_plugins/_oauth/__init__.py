"""The messages between a client and a gateway, after the RFCs and the gateways' pages: data and pure functions."""
