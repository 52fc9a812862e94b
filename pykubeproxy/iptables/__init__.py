"""The netfilter NAT backend: chains KUBE-SERVICES, KUBE-SVC-…, KUBE-SEP-… as kube-proxy names them."""
