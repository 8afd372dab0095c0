"""Adapters for requests, httpx and httpx2, sync and async.

`flow` has the journey of one API request, written once. A further HTTP client needs a face like `requests` or `httpx`,
which shows its requests to the flow and performs what it yields. A client without a face uses `calls`.
"""
