-- Every table is keyed by conversation, but for people (keyed by person) and state (keyed by key).

-- One row a conversation. `due` is when anybody may work on it: NULL when nothing waits, the lease's end while
-- `owner` works on it, the time of the next try after a failure.
CREATE TABLE conversations (
    conversation TEXT PRIMARY KEY,
    instance     TEXT NOT NULL,
    owner        TEXT,
    due          REAL,
    seq          INTEGER NOT NULL DEFAULT 0,  -- of the last turn
    window_start INTEGER NOT NULL DEFAULT 1,  -- first turn that the model is sent
    opened       INTEGER NOT NULL DEFAULT 1,  -- first turn since the person last began afresh
    draft        BLOB                         -- the reply under way: see bot.store.Draft
) WITHOUT ROWID;
CREATE INDEX conversations_due ON conversations (due) WHERE due IS NOT NULL;

-- Every accepted message: the queue, the memory of what was delivered before, and the journal of outcomes.
CREATE TABLE inbox (
    conversation TEXT    NOT NULL,
    message      TEXT    NOT NULL,            -- the platform's id
    number       INTEGER NOT NULL,            -- order of arrival
    accepted     REAL    NOT NULL,
    state        INTEGER NOT NULL DEFAULT 0,  -- 0 waiting, 1 done, 2 parked
    tries        INTEGER NOT NULL DEFAULT 0,
    payload      BLOB,                        -- the message as JSON; NULL when done
    outcome      TEXT,                        -- answered, ignored, refused, failed
    reason       TEXT,
    turn         INTEGER,                     -- seq of the turn that answered it
    PRIMARY KEY (conversation, message)
) WITHOUT ROWID;
CREATE INDEX inbox_waiting ON inbox (conversation, number) WHERE state = 0;
CREATE INDEX inbox_parked ON inbox (accepted) WHERE state = 2;
CREATE INDEX inbox_done ON inbox (accepted) WHERE state = 1;

-- The history, whole and in order; the clustered key makes the last twenty turns one read.
CREATE TABLE turns (
    conversation TEXT    NOT NULL,
    seq          INTEGER NOT NULL,
    role         TEXT    NOT NULL,
    content      TEXT    NOT NULL,
    tokens       INTEGER NOT NULL,
    at           REAL    NOT NULL,
    person       TEXT,
    model        TEXT,
    prompt       INTEGER,
    cached       INTEGER,
    completion   INTEGER,
    PRIMARY KEY (conversation, seq)
) WITHOUT ROWID;

-- What each person used; the row '*' of a day is everybody.
CREATE TABLE people (
    person     TEXT    NOT NULL,
    day        INTEGER NOT NULL,              -- days since 1970, UTC
    messages   INTEGER NOT NULL DEFAULT 0,
    prompt     INTEGER NOT NULL DEFAULT 0,
    cached     INTEGER NOT NULL DEFAULT 0,
    completion INTEGER NOT NULL DEFAULT 0,
    minute     INTEGER NOT NULL DEFAULT 0,
    in_minute  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (person, day)
) WITHOUT ROWID;

CREATE TABLE state (
    key     TEXT PRIMARY KEY,
    value   TEXT NOT NULL,
    expires REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX state_expires ON state (expires);
