import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { smallConfig } from '../test/fixtures.js'
import { checkSlack, defaultSlack, droppedEvents, roomOf } from './window.js'

const MAX_ROOM = 9
const MAX_EVENTS = 40

/** Every room, slack below it and number of events. */
function* windows() {
  for (let room = 0; room <= MAX_ROOM; room++) {
    for (let slack = 0; slack < Math.max(1, room); slack++) {
      for (let events = 0; events <= MAX_EVENTS; events++) yield { room, slack, events }
    }
  }
}

describe('droppedEvents', () => {
  test('goes event by event to the first start that fits and is a multiple of the slack', () => {
    for (const { room, slack, events } of windows()) {
      for (let offset = 0; offset <= 12; offset++) {
        let dropped = Math.max(0, events - room)
        const hasSteps = slack > 0 && slack < Math.min(room, events) && offset + dropped > 0
        while (hasSteps && (offset + dropped) % slack !== 0) dropped++
        const what = `room ${room}, slack ${slack}, ${events} events behind ${offset}`
        assert.equal(droppedEvents(events, room, slack, offset), dropped, what)
      }
    }
  })

  test('keeps room - slack + 1 to room events of a history that overflows, all of one that does not', () => {
    for (const { room, slack, events } of windows()) {
      const kept = events - droppedEvents(events, room, slack, 0)
      const least = Math.min(events, events > room ? room - Math.max(slack, 1) + 1 : events)
      assert.ok(kept >= least && kept <= room, `room ${room}, slack ${slack}, ${events} events`)
    }
  })

  test('moves the start once per slack events of a history that grows, and by the slack', () => {
    for (const { room, slack } of windows()) {
      if (slack === 0) continue
      let start = 0
      for (let events = room + 1; events <= MAX_EVENTS; events++) {
        const next = droppedEvents(events, room, slack, 0)
        const moves = (events - room - 1) % slack === 0
        assert.equal(next - start, moves ? slack : 0, `room ${room}, slack ${slack}, ${events}`)
        start = next
      }
    }
  })

  test('starts where the whole history’s window starts, whatever older events are not posted', () => {
    for (const { room, slack, events: total } of windows()) {
      for (let offset = 0; offset <= total - room; offset++) {
        const start = offset + droppedEvents(total - offset, room, slack, offset)
        const what = `room ${room}, slack ${slack}, ${total} events, ${offset} not posted`
        assert.equal(start, droppedEvents(total, room, slack, 0), what)
      }
    }
  })

  test('never drops all of a short window, however large the slack', () => {
    for (const { room, slack, events } of windows()) {
      for (let offset = 0; offset <= 12; offset++) {
        const dropped = droppedEvents(events, room, slack, offset)
        assert.ok(dropped >= 0 && dropped <= events)
        if (room > 0 && events > 0) assert.ok(dropped < events)
      }
    }
  })
})

describe('checkSlack', () => {
  test('takes whole numbers below the room, names the range else', () => {
    // 2 context tokens, 32 events.
    const config = smallConfig({ maxTokens: 66 })
    assert.equal(roomOf(config), 32)
    for (const slack of [0, 1, 31]) assert.equal(checkSlack(slack, config), slack)
    for (const slack of [32, -1, 1.5, Number.NaN]) {
      assert.throws(() => checkSlack(slack, config), {
        code: 'CONFIG_INVALID',
        message: `window slack must be an integer from 0 to 31, below the 32 events that the model holds, got ${slack}`,
      })
    }
  })

  test('leaves models without room for events alone, and takes every default', () => {
    for (let maxTokens = 2; maxTokens <= 80; maxTokens++) {
      const config = smallConfig({ maxTokens })
      const slack = defaultSlack(roomOf(config))
      assert.equal(checkSlack(slack, config), Math.floor(roomOf(config) / 16))
    }
    assert.throws(() => checkSlack(1, smallConfig({ maxTokens: 3 })), { code: 'CONFIG_INVALID' })
  })
})
