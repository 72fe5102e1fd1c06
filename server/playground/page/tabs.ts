/// <reference lib="dom" />
import { byId } from './dom.js'

export type Tab = 'rank' | 'cost' | 'metrics'

const TABS: readonly Tab[] = ['rank', 'cost', 'metrics']

/**
 * Tabs as the ARIA practices have them: one of them in the tab order, arrows and Home and End move.
 * The address keeps the choice. @see https://www.w3.org/WAI/ARIA/apg/patterns/tabs/
 */
export function startTabs(onShow: (tab: Tab) => void): void {
  const buttons = TABS.map((tab) => byId(`tab-${tab}`, HTMLButtonElement))

  function select(index: number): void {
    TABS.forEach((tab, i) => {
      const isChosen = i === index
      const button = buttons[i]
      button?.setAttribute('aria-selected', String(isChosen))
      if (button !== undefined) button.tabIndex = isChosen ? 0 : -1
      byId(`panel-${tab}`, HTMLElement).hidden = !isChosen
    })
    const tab = TABS[index] ?? 'rank'
    history.replaceState(null, '', tab === 'rank' ? location.pathname : `#${tab}`)
    onShow(tab)
  }

  buttons.forEach((button, i) => {
    button.addEventListener('click', () => select(i))
    button.addEventListener('keydown', (event) => {
      const last = TABS.length - 1
      const next = {
        ArrowRight: i === last ? 0 : i + 1,
        ArrowLeft: i === 0 ? last : i - 1,
        Home: 0,
        End: last,
      }[event.key]
      if (next === undefined) return
      event.preventDefault()
      select(next)
      buttons[next]?.focus()
    })
  })
  select(
    Math.max(
      0,
      TABS.findIndex((tab) => location.hash === `#${tab}`),
    ),
  )
}
