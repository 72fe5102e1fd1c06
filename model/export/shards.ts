import { existsSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import Type from 'typebox'
import { Compile } from 'typebox/compile'
import { check, show } from '../check.js'
import { readJson } from '../config.js'
import { RankError } from '../errors.js'
import { openSafetensors, type Safetensors } from './safetensors.js'

const compiled = Compile(Type.Object({ weight_map: Type.Record(Type.String(), Type.String()) }))

/**
 * Opens a safetensors file or, where there is none, the files that `<file>.index.json` names: its `weight_map` says
 * which tensor lies in which of them, as Hugging Face's libraries write it.
 * @throws {RankError} WEIGHTS_INVALID when a file or tensor is missing, or one that the map does not have is there
 */
export function openCheckpoint(file: string): Safetensors {
  const index = `${file}.index.json`
  if (existsSync(file) || !existsSync(index)) return openSafetensors(file)
  const { weight_map: map } = check(
    compiled,
    readJson(index, 'WEIGHTS_INVALID'),
    'WEIGHTS_INVALID',
    index,
  )
  const shards = new Map<string, Safetensors>()
  const close = () => {
    for (const shard of shards.values()) shard.close()
  }
  try {
    for (const name of new Set(Object.values(map))) {
      if (name !== basename(name)) {
        throw new RankError(
          'WEIGHTS_INVALID',
          `${index}: files must lie beside it, got ${show(name)}`,
        )
      }
      shards.set(name, openSafetensors(`${dirname(file)}/${name}`))
    }
    const shardOf = (tensor: string): Safetensors => {
      const shard = Object.hasOwn(map, tensor) ? shards.get(map[tensor] ?? '') : undefined
      if (shard?.names.includes(tensor)) return shard
      throw new RankError('WEIGHTS_INVALID', `${index}: no tensor ${show(tensor)} where it says`)
    }
    const names = [...shards.values()].flatMap((shard) => shard.names)
    const placed = new Map(Object.keys(map).map((name) => [name, shardOf(name)]))
    const stray = names.find((name) => !placed.has(name))
    if (stray !== undefined || names.length !== placed.size) {
      throw new RankError(
        'WEIGHTS_INVALID',
        `${index}: must name each tensor of its files once, got ${show(stray ?? 'one twice')}`,
      )
    }
    const of = (name: string) => placed.get(name) ?? shardOf(name)
    return {
      names,
      dims: (name) => of(name).dims(name),
      read: (name) => of(name).read(name),
      readRows: (name, start, end) => of(name).readRows(name, start, end),
      close,
    }
  } catch (error) {
    close()
    throw error
  }
}
