"""Load against a running mesh, as its callers make it, and what they see of it.

The measures are those of the field, so that figures stand beside those of other tools:

* TTFT, time to first token: from when a call is meant to begin to its first chunk that says
  something; a first chunk without content does not count, as in AIPerf's metrics reference
  (`time_to_first_token`). `vllm bench serve` counts that one too.
* ITL, inter-token latency: the time between two such chunks, each of them, as `itl` of
  `vllm bench serve`. An engine that sends several tokens in a chunk has fewer and longer ones.
* TPOT, time per output token: (end to end - TTFT) / (output tokens - 1) of a call, `tpot` of
  `vllm bench serve`, `inter_token_latency` of AIPerf and GenAI-Perf.
* End to end: from when a call is meant to begin to its last chunk that says something, as
  `request_latency` of AIPerf; of answers in one piece to their last byte.
* Goodput: answered calls per second that keep all of the limits that are set (TTFT, and TPOT for
  `--slo-itl`), as in DistServe (Zhong et al., OSDI 2024), `--goodput` of both tools.
* Percentiles interpolate between the two nearest ranks (Hyndman and Fan's type 7), as
  numpy.percentile does for both tools.

Rates are over the time from the first call to the last answer.

A call is meant to begin when the plan says so, not when there was room to send it. With `--rate`
that moment does not depend on answers (an open loop), so that a mesh that stalls is charged with
all that would have come meanwhile: Gil Tene's coordinated omission. Without it, each of so many
callers asks again when it is answered (a closed loop): who stalls is asked less, and the figures
say only how long answers take for callers who wait.
"""
