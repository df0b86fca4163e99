-- One role a process (threats.md section 5), made once, when the database is. psql reads each password from the file
-- that the process itself signs in with: host:port:database:role:password.
\set ON_ERROR_STOP on
\set migrate `cut -d: -f5 "${PGPASS_FOLDER:-/run/secrets}/migrate.pgpass"`
\set public `cut -d: -f5 "${PGPASS_FOLDER:-/run/secrets}/public.pgpass"`
\set staff `cut -d: -f5 "${PGPASS_FOLDER:-/run/secrets}/staff.pgpass"`
\set worker `cut -d: -f5 "${PGPASS_FOLDER:-/run/secrets}/worker.pgpass"`

CREATE ROLE hotline_migrate LOGIN PASSWORD :'migrate';
CREATE ROLE hotline_public LOGIN PASSWORD :'public';
CREATE ROLE hotline_staff LOGIN PASSWORD :'staff';
CREATE ROLE hotline_worker LOGIN PASSWORD :'worker';

REVOKE ALL ON DATABASE hotline FROM PUBLIC;
GRANT CONNECT ON DATABASE hotline TO hotline_migrate, hotline_public, hotline_staff, hotline_worker;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO hotline_migrate;
GRANT USAGE ON SCHEMA public TO hotline_public, hotline_staff, hotline_worker;

-- Only migrations make tables, and own them: no process can change a table or drop a trigger of the history.
ALTER DEFAULT PRIVILEGES FOR ROLE hotline_migrate IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE ON TABLES TO hotline_public;
ALTER DEFAULT PRIVILEGES FOR ROLE hotline_migrate IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO hotline_staff, hotline_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE hotline_migrate IN SCHEMA public
    GRANT USAGE ON SEQUENCES TO hotline_public, hotline_staff, hotline_worker;
