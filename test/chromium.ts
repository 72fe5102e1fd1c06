// A real browser for tests: Debian's Chromium, driven by Playwright.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { type Browser, chromium, type Locator, type Page } from 'playwright-core'

const executablePath = findChromium()
/** Root may not use Chromium's sandbox; the pages are our own. */
const ARGS = process.getuid?.() === 0 ? ['--no-sandbox'] : []

/** Why tests in a browser are skipped, or false; they may not be where REQUIRE_CHROMIUM is 1. */
export const noChromium =
  executablePath === undefined && process.env.REQUIRE_CHROMIUM !== '1'
    ? 'no chromium on PATH; REQUIRE_CHROMIUM=1 makes this a failure'
    : false

export function launchChromium(): Promise<Browser> {
  assert.ok(executablePath !== undefined, 'chromium must be on PATH, got none')
  return chromium.launch({ executablePath, args: ARGS })
}

/** The text as its reader sees it, with the lines that the layout gives it. */
export function readText(locator: Locator): Promise<string> {
  // biome-ignore lint/performance/useDomNodeTextContent: the layout is what is asked for
  return locator.innerText()
}

/** WCAG's contrast ratio of an element's text against the first opaque colour behind it. */
export function contrast(page: Page, selector: string): Promise<number> {
  return page
    .locator(selector)
    .first()
    .evaluate((element) => {
      const channels = (colour: string) => (colour.match(/[\d.]+/g) ?? []).map(Number)
      const light = (colour: string) => {
        const [r = 0, g = 0, b = 0] = channels(colour).map((value) => {
          const c = value / 255
          return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
        })
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
      }
      let behind: Element | null = element
      while (behind !== null && channels(getComputedStyle(behind).backgroundColor)[3] === 0) {
        behind = behind.parentElement
      }
      const back = light(getComputedStyle(behind ?? document.body).backgroundColor)
      const front = light(getComputedStyle(element).color)
      return (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05)
    })
}

function findChromium(): string | undefined {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    try {
      return execFileSync('which', [name], { encoding: 'utf8' }).trim()
    } catch {
      // Not this one.
    }
  }
  return undefined
}
