"""The netfilter NAT backend, with the chains that kube-proxy makes: KUBE-SERVICES, KUBE-SVC-…."""
