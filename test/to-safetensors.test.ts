// The Python helper for PyTorch's own files. Needs PyTorch and safetensors: skipped without, unless REQUIRE_TORCH=1.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { openSafetensors } from '../model/export/safetensors.js'
import { tempFolder } from './fixtures.js'

const PYTHON = process.env.PYTHON ?? 'python3'
const HELPER = 'model/train/to_safetensors.py'

function python(...args: string[]) {
  return spawnSync(PYTHON, args, { encoding: 'utf8' })
}

const isThere = python('-c', 'import torch, safetensors').status === 0
const skip = isThere || process.env.REQUIRE_TORCH === '1' ? false : `${PYTHON} has no PyTorch`

/** The files of a trainer, as upstream's two write them; one that is not what it seems. */
const FILES = `
import sys, torch, torch.distributed.checkpoint as dcp
folder = sys.argv[1]
layer = {"module._hstu._attention_layers.0._uvqk": torch.arange(6.).reshape(2, 3)}
torch.save({"epoch": 1, "model_state_dict": layer, "optimizer_state_dict": {"x": torch.ones(1)}}, f"{folder}/r.pt")
dense = {"_item_embedding_mlp.0.bias": torch.ones(2, dtype=torch.float64), "_other.weight": torch.zeros(1, 4)}
torch.save({"dense_dict": dense, "sparse_tensor_keys": {"a"}}, f"{folder}/non_sparse.ckpt")
sparse = {"_embedding_collection.embeddings.item_id.weight": torch.full((3, 2), 0.5, dtype=torch.float16)}
dcp.save({"sparse_dict": sparse}, storage_writer=dcp.FileSystemWriter(f"{folder}/sparse"), no_dist=True)
class Evil:
    def __reduce__(self):
        return (open, (f"{folder}/owned", "w"))
torch.save({"model_state_dict": layer, "evil": Evil()}, f"{folder}/evil.pt")
`

test('to_safetensors.py reads both trainers’ files and names what it does not know', {
  skip,
}, (t) => {
  const folder = tempFolder(t)
  const made = python('-W', 'ignore', '-c', FILES, folder)
  assert.equal(made.status, 0, made.stderr)
  const convert = (out: string, ...from: string[]) =>
    python(HELPER, '--out', `${folder}/${out}`, ...from.map((name) => `${folder}/${name}`))
  const read = (file: string) => {
    const opened = openSafetensors(`${folder}/${file}`)
    t.after(() => opened.close())
    return Object.fromEntries(opened.names.map((name) => [name, [...opened.read(name)]]))
  }

  const research = convert('r.safetensors', 'r.pt')
  assert.equal(research.status, 0, research.stderr)
  assert.deepEqual(read('r.safetensors'), {
    'module._hstu._attention_layers.0._uvqk': [0, 1, 2, 3, 4, 5],
  })

  const dlrm = convert('d.safetensors', 'non_sparse.ckpt', 'sparse')
  assert.equal(dlrm.status, 0, dlrm.stderr)
  assert.match(dlrm.stdout, /^2 tensors in /)
  assert.match(dlrm.stdout, /^not known, left out: _other\.weight \(1, 4\)$/m)
  assert.deepEqual(read('d.safetensors'), {
    '_embedding_collection.embeddings.item_id.weight': [0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    '_item_embedding_mlp.0.bias': [1, 1],
  })

  const twice = convert('x.safetensors', 'r.pt', 'r.pt')
  assert.notEqual(twice.status, 0)
  assert.match(twice.stderr, /_uvqk is in an earlier checkpoint too/)
  const evil = convert('x.safetensors', 'evil.pt')
  assert.notEqual(evil.status, 0)
  assert.match(evil.stderr, /weights_only|WeightsUnpickler/i)
})
