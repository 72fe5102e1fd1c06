import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { FastifyInstance } from 'fastify'
import type { Browser, Page } from 'playwright-core'
import { launchChromium, noChromium, readText } from '../../test/chromium.js'
import { appOf } from '../../test/plain-ranker.js'
import { digestOf } from '../key-file.js'

describe('pages of a server that asks for API keys, in Chromium', { skip: noChromium }, () => {
  let app: FastifyInstance
  let browser: Browser
  let url: string

  before(async () => {
    const web = { name: 'web', scopes: ['rank'], share: 1, digest: digestOf('the-key') } as const
    app = await appOf(undefined, { keys: () => [web] })
    url = await app.listen({ port: 0 })
    browser = await launchChromium()
  })
  after(async () => {
    await browser?.close()
    app?.server.closeAllConnections()
    await app?.close()
  })

  /** `steps` in a page of their own; anything that breaks its policy fails the test. */
  async function on(path: string, steps: (page: Page) => Promise<void>): Promise<void> {
    const context = await browser.newContext()
    try {
      const page = await context.newPage()
      const complaints: string[] = []
      page.on('pageerror', (error) => complaints.push(error.message))
      page.on('console', (message) => {
        if (/Content Security Policy/.test(message.text())) complaints.push(message.text())
      })
      await page.goto(url + path)
      await steps(page)
      assert.deepEqual(complaints, [])
    } finally {
      await context.close()
    }
  }

  async function give(page: Page, key: string): Promise<void> {
    await page.getByRole('dialog', { name: 'API key' }).waitFor()
    await page.locator('#key').fill(key)
    await page.getByRole('button', { name: 'Use' }).click()
  }

  test('the playground asks until it has one, and keeps it in the tab only', async () => {
    await on('/', async (page) => {
      await give(page, 'wrong')
      await page.getByText('The server does not know that key.').waitFor()
      await give(page, 'the-key')
      await page.getByText('toy', { exact: true }).waitFor()
      await page.getByRole('button', { name: 'Rank', exact: true }).click()
      await page.locator('#ranked > li').first().waitFor()
      const kept = await page.evaluate(() => [
        JSON.stringify({ ...sessionStorage }),
        JSON.stringify({ ...localStorage }) + document.cookie,
      ])
      assert.deepEqual(kept, ['{"peregrine-key":"the-key"}', '{}'])

      await page.reload()
      await page.getByText('toy', { exact: true }).waitFor()
      await page.getByRole('tab', { name: 'Metrics' }).click()
      const problem = page.locator('#metrics-problem')
      await problem.waitFor()
      assert.match(await readText(problem), /^FORBIDDEN\nneeds an API key of scope metrics/)
    })
  })

  test('the playground says what it lacks when none is given', async () => {
    await on('/', async (page) => {
      await page.getByRole('button', { name: 'Cancel' }).click()
      const problem = page.locator('#problem')
      await problem.waitFor()
      assert.match(await readText(problem), /^UNAUTHENTICATED\n.*got none$/)
      assert.equal(await page.locator('dialog[open]').count(), 0)
    })
  })

  test('/docs works under its policy and can be given a key', async () => {
    await on('/docs', async (page) => {
      await page.getByText('Rank candidates for one user').waitFor()
      await page.getByRole('button', { name: 'Authorize' }).first().click()
      await page.getByText('x-api-key').first().waitFor()
    })
  })
})
