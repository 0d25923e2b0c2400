-- Asks for /item/1 … /item/N in turn, N being the argument, and prints one line of figures for the driver.

local requests = {}
local last = 0

function init(arguments)
  for id = 1, tonumber(arguments[1]) do
    requests[id] = wrk.format("GET", "/item/" .. id)
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

-- requests, their duration in µs, failures, and the latencies' median and 99th percentile in µs
function done(summary, latency)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("figures %d %d %d %d %d\n", summary.requests, summary.duration, failures,
    latency:percentile(50), latency:percentile(99)))
end
