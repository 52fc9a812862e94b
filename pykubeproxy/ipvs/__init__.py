"""IPVS mode: virtual servers, and the addresses, sets and rules around them."""
