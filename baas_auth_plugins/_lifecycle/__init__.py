"""When a token is fetched: one token's state, and the flows that change it. Nothing here does I/O.

A cold call goes through `credentials`, `source`, `single_flight`, `coordinator` and `fetch`, in this order. `state` has
the rules, `effects` what the flows yield.
"""
