"""The API's operations, one module each."""
