// npm run generate:clients
import { writeFileSync } from 'node:fs'
import { generate } from './generate.js'

for (const [path, text] of generate()) writeFileSync(path, text)
