/** A raw feature value as a client sends it; strings and numbers are told apart only by `bucket`. */
export type FeatureValue = string | number

export type Features = { readonly [name: string]: FeatureValue }

/** One interaction of the user, or one exposure without any action. */
export type HistoryEvent = {
  readonly item: string
  /** Whole seconds since the epoch. */
  readonly time: number
  /** Names of action types; `[]` = shown, nothing done; absent = not observed. */
  readonly actions?: readonly string[]
  readonly features?: Features
}

/** One entry of a slowly changing series (followed authors, city, …). */
export type SeriesEntry = { readonly value: FeatureValue; readonly time: number }

export type Candidate = { readonly item: string; readonly features?: Features }

/** What is stored of a user's main series, oldest first. */
export type StoredHistory = {
  readonly events: readonly HistoryEvent[]
  /** How many events before these were not read: no history could hold them. */
  readonly older: number
}

/** A user at a time, parsed and free of HTTP: what a history's tokens are made of. */
export type HistoryInput = {
  readonly user: { readonly id: string; readonly features?: Features }
  /** What the service itself keeps of the main series: merged like `histories`, before all of them. */
  readonly stored?: StoredHistory
  /** Main series, merged by time; at equal times earlier sources come first. */
  readonly histories: readonly (readonly HistoryEvent[])[]
  readonly series: { readonly [name: string]: readonly SeriesEntry[] }
  /**
   * Events of all sources, older than these, that the sender left out; 0 when absent. Tells where a
   * sliding window stands in the whole history, so that its start can stay in place.
   */
  readonly historyOffset?: number
  /** Query time: whole seconds since the epoch. */
  readonly time: number
}

/** What there is to rank. All candidates share one query time. */
export type RankInput = HistoryInput & { readonly candidates: readonly Candidate[] }

/** Whose next items to retrieve, and what to leave out. */
export type RetrieveInput = HistoryInput & {
  readonly exclude: readonly string[]
  /** Leaves out every item of the histories. */
  readonly excludeHistory: boolean
}

/** Something the caller should know but that does not stop the ranking. */
export type Warning = {
  readonly code:
    | 'UNKNOWN_ITEM'
    | 'UNKNOWN_FEATURE'
    | 'DENSE_FEATURE_DROPPED'
    | 'UNKNOWN_SERIES'
    | 'HISTORY_TRUNCATED'
    | 'EVENT_AFTER_QUERY'
    | 'UNKNOWN_ACTION'
    | 'HISTORY_UNAVAILABLE'
  readonly message: string
  readonly count: number
}
