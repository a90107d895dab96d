-- What is remembered of upstream servers from one run to the next. `digest` is a keyed digest of a server's expanded
-- section: another configuration is another server.

CREATE TABLE kept_offers (
    server_id text NOT NULL,
    digest bytea NOT NULL,
    offer bytea NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT kept_offers_pkey PRIMARY KEY (server_id, digest)
);

CREATE TABLE link_eras (
    server_id text NOT NULL,
    digest bytea NOT NULL,
    era text NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT link_eras_pkey PRIMARY KEY (server_id, digest)
);
