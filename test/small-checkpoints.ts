// Configs of small models of the public code's variants.

/** Two heads, dqk != dv; a window shorter than the position table. */
export const SMALL_RESEARCH = {
  variant: 'research',
  name: 'small-research',
  dModel: 12,
  heads: 2,
  dqk: 4,
  dv: 3,
  layers: 2,
  items: 40,
  maxSequenceLen: 30,
  maxOutputLen: 5,
} as const

/** Tables shared by features, an item tower in another order, positions and time buckets that run out. */
export const SMALL_DLRM = {
  variant: 'dlrm-v3',
  name: 'small-dlrm',
  dModel: 12,
  heads: 2,
  dqk: 4,
  dv: 3,
  layers: 2,
  tableDim: 6,
  preprocessorHidden: 5,
  itemHidden: 7,
  headHidden: 9,
  actionDim: 2,
  positionRows: 20,
  timeRows: 50,
  divisor: 40,
  itemFeature: 'id',
  extraItemFeatures: ['author', 'maker'],
  itemTower: ['author', 'id', 'maker'],
  context: [
    { name: 'country', minHistory: 0 },
    { name: 'device', minHistory: 3 },
  ],
  features: [
    { name: 'id', table: 'items', rows: 40 },
    { name: 'author', table: 'people', rows: 9 },
    { name: 'maker', table: 'people', rows: 9 },
    { name: 'country', table: 'countries', rows: 5 },
    { name: 'device', table: 'devices', rows: 3 },
  ],
  actionWeights: [1, 4, 2],
  actions: ['click', 'like', 'share'],
  tasks: [
    { name: 'click', type: 'binary' },
    { name: 'seconds', type: 'regression' },
  ],
} as const
