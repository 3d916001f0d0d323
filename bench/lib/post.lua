-- For wrk: sends one POST after the other, every body with a number of its own, and prints what came of it as JSON.
-- Arguments: a mark that no other run has (8 characters), the file of the body, then "name: value" headers.

local before, after, mark
local count = 0

function init(args)
  mark = args[1]
  local file = assert(io.open(args[2], "rb"))
  local body = file:read("*a")
  file:close()
  local headers = {}
  for i = 3, #args do
    local name, value = args[i]:match("^([^:]+): (.*)$")
    headers[name] = value
  end
  local whole = wrk.format("POST", wrk.path, headers, body)
  local from, to = whole:find("################", 1, true)
  before, after = whole:sub(1, from - 1), whole:sub(to + 1)
end

function request()
  count = count + 1
  return before .. mark .. string.format("%08d", count) .. after
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests":%d,"seconds":%.6f,"p50Ms":%.3f,"p99Ms":%.3f,"errors":%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
