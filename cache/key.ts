import { hash } from 'node:crypto'
import type { KvCodecName } from '../model/engine/codec/graphs.js'

declare const USER_HASH: unique symbol

/** What stands for a user in Redis and in tier 1: no user id is ever written there in clear. */
export type UserHash = string & { readonly [USER_HASH]: true }

/** 132 of SHA-256's bits: two of 10^12 users share them with probability 1e-16. */
const HASH_CHARS = 22

export function userHash(userId: string): UserHash {
  return shortHash(userId) as UserHash
}

/** The first 132 bits of a text's SHA-256, as 22 characters of base64url. */
export function shortHash(text: string): string {
  return hash('sha256', text, 'base64url').slice(0, HASH_CHARS)
}

/**
 * Keys of one user. The hash stands in braces: Redis Cluster then keeps all of a user's keys on one
 * node, so that one script may use several of them.
 */
export function eventsKey(user: UserHash): string {
  return `peregrine:{${user}}:events`
}

/** What an append with this idempotency key was answered. */
export function appendKey(user: UserHash, idempotencyKey: string): string {
  return `peregrine:{${user}}:append:${shortHash(idempotencyKey)}`
}

/**
 * What one entry of K/V is of: another model's is never read. Nor another codec's: replicas that do not
 * agree on one, as while it is being changed, would find each other's corrupt and delete it in turn.
 */
export function kvVariant(version: string, codec: KvCodecName): string {
  return `${version}:${codec}`
}

export function kvKey(variant: string, user: UserHash): string {
  return `peregrine:{${user}}:kv:${variant}`
}

/** The set of variants in which there is K/V of the user: what a deletion must reach. */
export function versionsKey(user: UserHash): string {
  return `peregrine:{${user}}:versions`
}
