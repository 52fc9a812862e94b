"""A kernel with IPVS where the running one has none: a User-Mode Linux guest for one command.

The guest is a process (``linux.uml``) on this machine's own files, so what runs in it is the
same checkout with the same interpreter. `run` shows its output here and returns its exit status;
`python -m e2e.guest -- COMMAND` does that from a shell; `replay` lets pytest run a folder in it.
Where `has_ip_vs` is true nobody needs any of this.

What is different inside: one processor; network and processes of its own; what is written to
`TMPDIR`, `/run` and `/dev/shm` is gone with it; of the iptables variants only legacy works
(its nf_tables lack nat). `in_guest` tells.
"""

from e2e.guest.boot import Guest, GuestError, run, why_not_here
from e2e.guest.capability import has_ip_vs, in_guest

__all__ = ["Guest", "GuestError", "has_ip_vs", "in_guest", "run", "why_not_here"]
