/** Lua: changes a byte of some field of some K/V entry. ARGV: a seed, and how often. */
export const MUTATE_ENTRIES = `
math.randomseed(ARGV[1])
local keys = redis.call('KEYS', '*:kv:*')
table.sort(keys)
for i = 1, #keys == 0 and 0 or ARGV[2] do
  local key = keys[math.random(#keys)]
  local fields = redis.call('HKEYS', key)
  local field = fields[math.random(#fields)]
  local value = redis.call('HGET', key, field)
  local at = math.random(#value)
  local byte = bit.bxor(value:byte(at), math.random(255))
  redis.call('HSET', key, field, value:sub(1, at - 1) .. string.char(byte) .. value:sub(at + 1))
end`
