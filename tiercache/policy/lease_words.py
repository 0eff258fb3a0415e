"""The words of ``leases.state``, the mapping in which QoS lends tokens to processes.

    offset  0    magic b"TCLEASE1"
    offset  8    u64  generation of the policy in force: 0 is off; moves with every change of it
    offset 16    u64  CLOCK_BOOTTIME in ns of the governor's last turn, 0 before the first
    offset 24    u64  the greatest generation so far, so that none comes twice
    offset 32    zeros up to 4096
    offset 4096  SLOTS_COUNT slots of 16 u64 words, one for each (process, identity)

A slot's words, by who stores them:

    agent    OWNER         stamp of the lease, never used twice; 0 is free
    client   USED_READ USED_OPS              tokens used so far, counting up
    client   WANT_READ WANT_OPS WAITING_NS   what the longest waiting operation lacks, since when;
                                             WAITING_NS 0 is nobody waits
    agent    GRANT_READ GRANT_OPS            up to where USED may count; an operation is admitted
                                             while USED < GRANT and then charged in full
    agent    RATE_READ RATE_OPS              its share lately, tokens a second; or UNLIMITED
    agent    SAFE_READ SAFE_OPS              its share when the agent has been gone for long
    client   WAITED_NS WAITS                 time spent waiting, and how often, counting up

Integers are little-endian and aligned, so that each load and store is one instruction; USED and
GRANT wrap nowhere (2^64 bytes are 580 years at 1 GB/s). The file is written in full when it is
made, never sparse: a store into a hole of a full file system would kill the storing process.
"""

from __future__ import annotations

MAGIC = b"TCLEASE1"
HEADER_BYTES = 4096
SLOT_WORDS = 16
# A (process, identity) each: 64 workers of 16 jobs with two identities. 256 KiB.
SLOTS_COUNT = 2048
FILE_BYTES = HEADER_BYTES + SLOTS_COUNT * SLOT_WORDS * 8
GENERATION_WORD = 1
TURN_WORD = 2
GREATEST_WORD = 3
UNLIMITED = (1 << 64) - 1

(
    OWNER, USED_READ, USED_OPS, WANT_READ, WANT_OPS, WAITING_NS, GRANT_READ, GRANT_OPS,
    RATE_READ, RATE_OPS, SAFE_READ, SAFE_OPS, WAITED_NS, WAITS,
) = range(14)  # fmt: skip
