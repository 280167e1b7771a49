BEGIN TRANSACTION;
CREATE TABLE incidents (
            tenant TEXT NOT NULL, incident_id TEXT NOT NULL, kind TEXT NOT NULL, severity INTEGER NOT NULL,
            opened_unix_nano BIGINT NOT NULL, changed_unix_nano BIGINT NOT NULL, resolved_unix_nano BIGINT,
            chains BIGINT NOT NULL, content TEXT NOT NULL, bytes BIGINT NOT NULL,
            PRIMARY KEY (tenant, incident_id));
INSERT INTO "incidents" VALUES('default','0000000000000001','slow_operation',3,1000000000,30000000000,30000000000,7,'{"incident_id":"0000000000000001","tenant":"default","kind":"slow_operation","category":"system","severity":"critical","subject":{"service":"risk","operation":"check","instance":null},"suspects":[{"service":"risk","operation":"check","score":0.9}],"flows":["gateway pay"],"opened_unix_nano":1000000000,"detected_unix_nano":1000000000,"resolved_unix_nano":30000000000,"chains":7,"example_trace_ids":["00000000000000000000000000000001"],"explanation":{"trigger":"check of risk took 2.5 s, usually 60 ms.","context":"Fewer than 1 in 1,000,000 normal chains look so unusual.","affected":{"flows":["gateway pay"],"services":["risk"],"instances":["risk-1"],"chains":1},"actions":["Look at what check of risk waits for.","Compare with a normal trace."]}}',875);
CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, applied_unix_nano BIGINT NOT NULL);
INSERT INTO "schema_versions" VALUES(1,1763769600000000000);
CREATE TABLE verdicts (
            tenant TEXT NOT NULL, verdict_id TEXT NOT NULL, trace_id TEXT NOT NULL, flow TEXT NOT NULL,
            start_unix_nano BIGINT NOT NULL, closed_unix_nano BIGINT NOT NULL, score DOUBLE PRECISION NOT NULL,
            severity INTEGER NOT NULL, content TEXT NOT NULL, records TEXT, bytes BIGINT NOT NULL,
            PRIMARY KEY (tenant, verdict_id));
INSERT INTO "verdicts" VALUES('default','0000000000000001','00000000000000000000000000000001','gateway pay',10000000000,10000000000,0.99,3,'{"verdict_id":"0000000000000001","tenant":"default","trace_id":"00000000000000000000000000000001","flow":"gateway pay","start_unix_nano":10000000000,"end_unix_nano":10000000000,"score":0.99,"severity":"critical","category":"system","findings":[{"kind":"slow_operation","subject":{"service":"risk"}}],"explanation":{"trigger":"check of risk took 2.5 s, usually 60 ms.","context":"Fewer than 1 in 1,000,000 normal chains look so unusual.","affected":{"flows":["gateway pay"],"services":["risk"],"instances":["risk-1"],"chains":1},"actions":["Look at what check of risk waits for.","Compare with a normal trace."]}}','{"records":[{"kind":"server","service":"gateway","operation":"pay","instance":null,"span_id":"0000000000000001","parent":null,"at_ns":0,"duration_ns":2000000000,"self_ns":1000000000,"status":"ok"}],"left_out":0}',951);
CREATE INDEX verdicts_by_age ON verdicts (closed_unix_nano, bytes);
CREATE INDEX verdicts_by_trace ON verdicts (tenant, trace_id);
CREATE INDEX incidents_by_age ON incidents (changed_unix_nano, bytes);
CREATE INDEX incidents_by_opening ON incidents (tenant, opened_unix_nano);
COMMIT;
