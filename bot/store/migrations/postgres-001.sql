-- The search path is the schema `magpie`. Every table is keyed by conversation, but for people (keyed by person) and
-- state (keyed by key); keys are compared byte by byte.

-- One row a conversation. `due` is when anybody may work on it: NULL when nothing waits, the lease's end while
-- `owner` works on it, the time of the next try after a failure. Times are seconds since 1970, by this server's clock.
CREATE TABLE conversations (
    conversation text COLLATE "C" PRIMARY KEY,
    instance     text             NOT NULL,
    owner        text,
    lease        bigint           NOT NULL DEFAULT 0,  -- which call leased it last; stays when it is given back
    due          double precision,
    seq          integer          NOT NULL DEFAULT 0,  -- of the last turn
    window_start integer          NOT NULL DEFAULT 1,  -- first turn that the model is sent
    opened       integer          NOT NULL DEFAULT 1,  -- first turn since the person last began afresh
    draft        bytea                                 -- the reply under way: see bot.store.Draft
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX conversations_due ON conversations (due) WHERE due IS NOT NULL;

-- Every accepted message: the queue, the memory of what was delivered before, and the journal of outcomes.
CREATE SEQUENCE arrivals;
CREATE TABLE inbox (
    conversation text COLLATE "C" NOT NULL,
    message      text COLLATE "C" NOT NULL,            -- the platform's id
    number       bigint           NOT NULL DEFAULT nextval('arrivals'),  -- order of arrival
    accepted     double precision NOT NULL,
    state        smallint         NOT NULL DEFAULT 0,  -- 0 waiting, 1 done, 2 parked
    tries        integer          NOT NULL DEFAULT 0,
    payload      bytea,                                -- the message as JSON; NULL when done
    outcome      text,                                 -- answered, ignored, refused, failed
    reason       text,
    turn         integer,                              -- seq of the turn that answered it
    PRIMARY KEY (conversation, message)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX inbox_waiting ON inbox (conversation, number) WHERE state = 0;
CREATE INDEX inbox_parked ON inbox (accepted) WHERE state = 2;
CREATE INDEX inbox_done ON inbox (accepted) WHERE state = 1;

-- The history, whole and in order.
CREATE TABLE turns (
    conversation text COLLATE "C" NOT NULL,
    seq          integer          NOT NULL,
    role         text             NOT NULL,
    content      text             NOT NULL,
    tokens       integer          NOT NULL,
    at           double precision NOT NULL,
    person       text,
    model        text,
    prompt       integer,
    cached       integer,
    completion   integer,
    PRIMARY KEY (conversation, seq)
);

-- What each person used in a day; everybody together is the sum of the rows '*', '*1' ... '*15', one for each
-- replica or a few of them, so that replicas do not queue up for a single row.
CREATE TABLE people (
    person     text COLLATE "C" NOT NULL,
    day        integer          NOT NULL,              -- days since 1970, UTC
    messages   integer          NOT NULL DEFAULT 0,
    prompt     bigint           NOT NULL DEFAULT 0,
    cached     bigint           NOT NULL DEFAULT 0,
    completion bigint           NOT NULL DEFAULT 0,
    minute     integer          NOT NULL DEFAULT 0,
    in_minute  integer          NOT NULL DEFAULT 0,
    PRIMARY KEY (person, day)
) WITH (fillfactor = 70);

CREATE TABLE state (
    key     text COLLATE "C" PRIMARY KEY,
    value   text             NOT NULL,
    expires double precision NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX state_expires ON state (expires);

-- The time by this server's clock: replicas whose own clocks differ agree on it.
CREATE FUNCTION clock() RETURNS double precision LANGUAGE sql STABLE
AS $$ SELECT extract(epoch FROM now())::double precision $$;

-- The functions below do a whole batch in one round trip and one transaction. Each statement in them is about one
-- conversation or one person. Locks are taken in one order, conversations by name, then people by name, so that two
-- batches never wait for each other in a circle. An earlier version of the program may still call a function while a
-- later one runs beside it: a function that changes its arguments gets a new name.

-- Write messages down and lease their conversations where nobody works on them. `over` is how far the person is over
-- the limit of a minute: 1 is still told so, what comes after is refused. `ticket` names the leases of this call.
CREATE FUNCTION accept(
    ticket bigint, term double precision, lanes text[], instances text[], owners text[], ids text[], payloads bytea[],
    persons text[], limits integer[]
) RETURNS TABLE (accepted double precision, fresh boolean, over integer, used bigint, leased boolean, seq integer,
                 window_start integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment   double precision := clock();
    total    integer := cardinality(ids);
    is_new   boolean[] := array_fill(false, ARRAY[total]);
    counts   integer[] := array_fill(0, ARRAY[total]);
    spending bigint[] := array_fill(0, ARRAY[total]);
    a        record;
    counted  record;
BEGIN
    FOR a IN SELECT * FROM unnest(lanes, instances, ids, payloads) WITH ORDINALITY
             AS given (lane, instance, id, payload, nr) ORDER BY lane COLLATE "C", nr LOOP
        PERFORM 1 FROM conversations WHERE conversation = a.lane FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO conversations (conversation, instance) VALUES (a.lane, a.instance)
            ON CONFLICT (conversation) DO UPDATE SET instance = excluded.instance;
        END IF;
        INSERT INTO inbox (conversation, message, accepted, payload) VALUES (a.lane, a.id, moment, a.payload)
        ON CONFLICT DO NOTHING;
        is_new[a.nr] := FOUND;
    END LOOP;

    FOR a IN SELECT * FROM unnest(persons, limits) WITH ORDINALITY AS given (person, most, nr)
             WHERE is_new[nr] ORDER BY person COLLATE "C", nr LOOP
        INSERT INTO people (person, day, messages, minute, in_minute)
        VALUES (a.person, floor(moment / 86400), 1, floor(moment / 60), 1)
        ON CONFLICT (person, day) DO UPDATE SET messages = people.messages + 1, minute = excluded.minute,
            in_minute = CASE people.minute WHEN excluded.minute THEN people.in_minute + 1 ELSE 1 END
        RETURNING in_minute, prompt + completion AS tokens INTO counted;
        counts[a.nr] := CASE WHEN a.most > 0 THEN counted.in_minute - a.most ELSE 0 END;
        spending[a.nr] := counted.tokens;
    END LOOP;

    accepted := moment;
    FOR a IN SELECT * FROM unnest(lanes, owners, ids) WITH ORDINALITY AS given (lane, owner, id, nr) ORDER BY nr LOOP
        fresh := is_new[a.nr];
        over := counts[a.nr];
        used := spending[a.nr];
        leased := false;
        IF over > 1 THEN
            UPDATE inbox SET state = 1, payload = NULL, outcome = 'refused', reason = 'rate_limited'
            WHERE conversation = a.lane AND message = a.id;
        ELSIF fresh THEN
            IF over = 1 THEN
                UPDATE inbox SET reason = 'limited' WHERE conversation = a.lane AND message = a.id;
            END IF;
            UPDATE conversations SET owner = a.owner, lease = ticket,
                due = moment + CASE WHEN a.owner IS NULL THEN 0 ELSE term END
            WHERE conversation = a.lane AND due IS NULL RETURNING seq, window_start INTO seq, window_start;
            leased := FOUND AND a.owner IS NOT NULL;
            IF NOT FOUND THEN
                UPDATE conversations SET due = moment
                WHERE conversation = a.lane AND owner IS NULL AND due > moment;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Lease conversations that are due, the longest waiting first, without waiting for anybody who holds one of them.
-- Without `take_over` leases that ran out are left alone.
CREATE FUNCTION claim(
    ticket bigint, term double precision, claimant text, served text[], most integer, take_over boolean
)
RETURNS TABLE (conversation text, instance text, seq integer, window_start integer, draft bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment double precision := clock();
    free   integer := most;
    ready  text;
BEGIN
    FOR ready IN SELECT conversation FROM conversations
                 WHERE due <= moment AND instance = ANY (served) AND (take_over OR owner IS NULL)
                 ORDER BY due LIMIT 4 * most LOOP
        EXIT WHEN free = 0;
        PERFORM 1 FROM conversations WHERE conversation = ready AND due <= moment FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        UPDATE conversations SET owner = claimant, lease = ticket, due = moment + term WHERE conversation = ready
        RETURNING conversation, instance, seq, window_start, draft
        INTO conversation, instance, seq, window_start, draft;
        free := free - 1;
        RETURN NEXT;
    END LOOP;
END $$;

-- What waits in each conversation, in the order of arrival.
CREATE FUNCTION waiting(lanes text[], most integer)
RETURNS TABLE (lane text, payload bytea, accepted double precision, tries integer, reason text)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    FOR lane IN SELECT unnest(lanes) LOOP
        FOR payload, accepted, tries, reason IN
            SELECT payload, accepted, tries, reason FROM inbox
            WHERE conversation = waiting.lane AND state = 0 ORDER BY number LIMIT most LOOP
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

CREATE FUNCTION extend(term double precision, holder text, lanes text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    moment double precision := clock();
    lane   text;
BEGIN
    FOR lane IN SELECT given FROM unnest(lanes) AS given ORDER BY given COLLATE "C" LOOP
        UPDATE conversations SET due = moment + term
        WHERE conversation = lane AND owner = holder AND due IS NOT NULL;
    END LOOP;
END $$;

-- Keep drafts. One row for each, in their order: whether the lease was still there.
CREATE FUNCTION save_drafts(lanes text[], owners text[], tickets bigint[], drafts bytea[])
RETURNS TABLE (nr bigint, kept boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    a record;
BEGIN
    FOR a IN SELECT * FROM unnest(lanes, owners, tickets, drafts) WITH ORDINALITY
             AS given (lane, owner, ticket, draft, nr) ORDER BY lane COLLATE "C", nr LOOP
        UPDATE conversations SET draft = a.draft
        WHERE conversation = a.lane AND owner = a.owner AND lease = a.ticket;
        nr := a.nr;
        kept := FOUND;
        RETURN NEXT;
    END LOOP;
END $$;

-- Append turns and book what they cost. The turns of the n-th conversation are firsts[n] to lasts[n] of the arrays
-- behind them. `base` is the last turn its caller knows of: when the new ones are there already, this call is the
-- repetition of one whose answer got lost, and changes nothing. `everybody` is this replica's row of the total.
CREATE FUNCTION complete(
    lanes text[], owners text[], tickets bigint[], bases integer[], starts integer[], drafts bytea[],
    discards integer[], forgets boolean[], payers text[], prompts bigint[], cacheds bigint[], completions bigint[],
    firsts integer[], lasts integer[],
    roles text[], contents text[], sizes integer[], persons text[], models text[],
    turn_prompts integer[], turn_cacheds integer[], turn_completions integer[],
    everybody text, all_rows text[]
) RETURNS TABLE (nr bigint, kept boolean, total bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment  double precision := clock();
    today   integer := floor(moment / 86400);
    owned   boolean[] := array_fill(false, ARRAY[cardinality(lanes)]);
    booked  boolean[] := owned;
    a       record;
    known   integer;
    added   integer;
BEGIN
    FOR a IN SELECT * FROM unnest(lanes, owners, tickets, bases, starts, drafts, discards, forgets, firsts, lasts)
             WITH ORDINALITY
             AS given (lane, owner, ticket, base, start, draft, discard, forget, first, last, nr)
             ORDER BY lane COLLATE "C", nr LOOP
        SELECT seq INTO known FROM conversations
        WHERE conversation = a.lane AND owner = a.owner AND lease = a.ticket FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        added := a.last - a.first + 1;
        owned[a.nr] := known IN (a.base, a.base + added);
        CONTINUE WHEN known <> a.base;
        booked[a.nr] := true;
        UPDATE conversations SET seq = a.base + added, window_start = a.start, draft = a.draft,
            opened = CASE WHEN a.forget THEN a.base + added + 1 ELSE opened END
        WHERE conversation = a.lane;
        IF a.discard > 0 THEN
            UPDATE turns SET role = 'discarded' WHERE conversation = a.lane AND seq = a.discard;
        END IF;
        FOR n IN a.first .. a.last LOOP
            INSERT INTO turns (conversation, seq, role, content, tokens, at, person, model, prompt, cached, completion)
            VALUES (a.lane, a.base + n - a.first + 1, roles[n], contents[n], sizes[n], moment, persons[n], models[n],
                    turn_prompts[n], turn_cacheds[n], turn_completions[n]);
        END LOOP;
    END LOOP;

    FOR a IN SELECT person, sum(prompt) AS prompt, sum(cached) AS cached, sum(completion) AS completion FROM (
                 SELECT payer AS person, prompt, cached, completion
                 FROM unnest(payers, prompts, cacheds, completions) WITH ORDINALITY
                      AS given (payer, prompt, cached, completion, nr) WHERE booked[nr] AND payer <> ''
                 UNION ALL
                 SELECT everybody, prompt, cached, completion
                 FROM unnest(prompts, cacheds, completions) WITH ORDINALITY
                      AS given (prompt, cached, completion, nr) WHERE booked[nr]
             ) AS costs GROUP BY person ORDER BY person COLLATE "C" LOOP
        INSERT INTO people (person, day, prompt, cached, completion)
        VALUES (a.person, today, a.prompt, a.cached, a.completion)
        ON CONFLICT (person, day) DO UPDATE SET prompt = people.prompt + excluded.prompt,
            cached = people.cached + excluded.cached, completion = people.completion + excluded.completion;
    END LOOP;

    total := (SELECT coalesce(sum(prompt + completion), 0) FROM people WHERE person = ANY (all_rows) AND day = today);
    FOR n IN 1 .. cardinality(lanes) LOOP
        nr := n;
        kept := owned[n];
        RETURN NEXT;
    END LOOP;
END $$;

-- Note how messages ended, and give back each lease unless something waits behind them. The outcomes of the n-th
-- conversation are firsts[n] to lasts[n]. A lease that its own holder gave back before is 'done' once more.
CREATE FUNCTION finish(
    term double precision, lanes text[], owners text[], tickets bigint[], firsts integer[], lasts integer[],
    ids text[], states smallint[], outcomes text[], reasons text[], answers integer[]
) RETURNS TABLE (nr bigint, result text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment double precision := clock();
    a      record;
    holder text;
    more   boolean;
BEGIN
    FOR a IN SELECT * FROM unnest(lanes, owners, tickets, firsts, lasts) WITH ORDINALITY
             AS given (lane, owner, ticket, first, last, nr) ORDER BY lane COLLATE "C", nr LOOP
        nr := a.nr;
        result := 'lost';
        SELECT owner INTO holder FROM conversations WHERE conversation = a.lane AND lease = a.ticket FOR UPDATE;
        IF FOUND AND holder IS NULL THEN
            result := 'done';
        ELSIF FOUND AND holder = a.owner THEN
            FOR n IN a.first .. a.last LOOP
                UPDATE inbox SET state = states[n], outcome = outcomes[n], reason = reasons[n], turn = answers[n],
                    payload = CASE states[n] WHEN 2 THEN payload END
                WHERE conversation = a.lane AND message = ids[n];
            END LOOP;
            more := EXISTS (SELECT FROM inbox WHERE conversation = a.lane AND state = 0);
            UPDATE conversations SET owner = CASE WHEN more THEN holder END, due = CASE WHEN more THEN moment + term END,
                draft = NULL
            WHERE conversation = a.lane;
            result := CASE WHEN more THEN 'more' ELSE 'done' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Give back a lease, to be due later. False when it had gone to somebody else.
CREATE FUNCTION postpone(lane text, holder text, ticket bigint, seconds double precision, reply bytea, tried text[])
RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    moment double precision := clock();
BEGIN
    UPDATE conversations SET owner = NULL, due = moment + seconds, draft = reply
    WHERE conversation = lane AND owner = holder AND lease = ticket;
    IF FOUND THEN
        UPDATE inbox SET tries = tries + 1 WHERE conversation = lane AND message = ANY (tried);
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT FROM conversations WHERE conversation = lane AND owner IS NULL AND lease = ticket);
END $$;

-- Bring parked messages of one conversation back; with `reply`, only while nobody works on it.
CREATE FUNCTION revive(lane text, ids text[], reply bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    moment double precision := clock();
    busy   boolean;
BEGIN
    SELECT due IS NOT NULL INTO busy FROM conversations WHERE conversation = lane FOR UPDATE;
    IF NOT FOUND OR (busy AND reply IS NOT NULL) THEN
        RETURN false;
    END IF;
    UPDATE inbox SET state = 0, tries = 0, outcome = NULL, reason = NULL
    WHERE conversation = lane AND message = ANY (ids) AND state = 2;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE conversations SET due = moment, draft = coalesce(reply, draft)
    WHERE conversation = lane AND owner IS NULL AND (due IS NULL OR due > moment);
    RETURN true;
END $$;

CREATE FUNCTION counts(OUT waiting bigint, OUT parked bigint, OUT due bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    waiting := (SELECT count(*) FROM inbox WHERE state = 0);
    parked := (SELECT count(*) FROM inbox WHERE state = 2);
    due := (SELECT count(*) FROM conversations AS c WHERE c.due IS NOT NULL);
END $$;

-- Rename conversations that begin with `old`, unless there is one of the new name. Keys are never changed in place:
-- a distributed table does not allow that.
CREATE FUNCTION move(old text, above text, new text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    source text;
    target text;
BEGIN
    FOR source IN SELECT conversation FROM conversations WHERE conversation >= old AND conversation < above
                  ORDER BY conversation LOOP
        target := new || substr(source, length(old) + 1);
        PERFORM 1 FROM conversations WHERE conversation = source FOR UPDATE;
        INSERT INTO conversations
        SELECT target, instance, owner, lease, due, seq, window_start, opened, draft
        FROM conversations WHERE conversation = source
        ON CONFLICT DO NOTHING;
        CONTINUE WHEN NOT FOUND;
        INSERT INTO inbox
        SELECT target, message, number, accepted, state, tries, payload, outcome, reason, turn
        FROM inbox WHERE conversation = source;
        INSERT INTO turns
        SELECT target, seq, role, content, tokens, at, person, model, prompt, cached, completion
        FROM turns WHERE conversation = source;
        DELETE FROM turns WHERE conversation = source;
        DELETE FROM inbox WHERE conversation = source;
        DELETE FROM conversations WHERE conversation = source;
    END LOOP;
END $$;

-- Forget what has run out, some of it at a time, by one replica at a time. Returns how much there was.
CREATE FUNCTION purge(keep double precision, most integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    moment  double precision := clock();
    removed integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('magpie purge', 0)) THEN
        RETURN 0;
    END IF;
    DELETE FROM state WHERE expires < moment;
    DELETE FROM inbox WHERE (conversation, message) IN (
        SELECT conversation, message FROM inbox WHERE state = 1 AND accepted < moment - keep
        ORDER BY accepted LIMIT most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$;
