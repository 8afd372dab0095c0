"""Over which HTTP client: requests, httpx and httpx2, sync and async. The flows are written once, in `flow`."""
