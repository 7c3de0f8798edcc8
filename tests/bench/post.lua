-- Posts one body again and again; prints the figures as one line of JSON.
local body, key = os.getenv("BENCH_BODY"), os.getenv("BENCH_KEY")
wrk.method = "POST"
wrk.body = body
wrk.headers["content-type"] = "application/json"
if key then wrk.headers["authorization"] = "Bearer " .. key end

function done(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read
    + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.3f,"failed":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, bad,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
