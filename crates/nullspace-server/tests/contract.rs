//! The published contract, the document made from the routes, and the list of what is not served: three files that must
//! agree. `UPDATE_OPENAPI=1` writes the two that are ours.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// Where ours may differ from the contract, and why.
///
/// - Prose of the contract: exec takes a user; `fields=` has a code of its own, and so has, in the client's documents, a create
///   that a warm pool cannot serve.
/// - Added to an answer where published clients ignore it: a create that differs from what was asked says so.
/// - Added to an answer, and read by published clients: the token for the ports of a sandbox.
/// - Added to a request, optional: what a template's sandboxes run when they are resumed; the end of an API key.
/// - Added to a request, optional: a replacement that only counts, as published clients send it for volumes. Added to its
///   answer: which files it could not change, and why.
const EXTRA_PROPERTIES: &[&str] = &[
    "ExecRequest.user",
    "CreateSandboxResponse.warnings",
    "SandboxInfo.traffic_access_token",
    "CreateTemplateRequest.resume_cmd",
    "SendStdinRequest.close",
    "CreateApiKeyRequest.expires_at",
    "CreateApiKeyRequest.grace_secs",
    "ReplaceInFilesRequest.dry_run",
    "ReplaceResult.dry_run",
    "ReplaceResult.skipped",
];
/// Optional bodies of operations that have none in the contract: the signal for a process, notes of a snapshot.
const EXTRA_BODIES: &[&str] = &["create_snapshot", "kill_process"];
/// Responses beside those of the contract: a part of a file, for those who ask for one.
const EXTRA_RESPONSES: &[(&str, &str)] = &[("download_file", "206")];
/// Operations that the contract lacks: a snapshot becomes a template.
const EXTRA_OPERATIONS: &[&str] = &["promote_snapshot"];
const EXTRA_ENUM_VALUES: &[(&str, &str)] =
    &[("ErrorResponseCode", "invalid_fields"), ("ErrorResponseCode", "warm_pool_unavailable")];
/// The contract's generator could not say "event stream"; its prose does.
const EVENT_STREAMS: &[&str] = &["stream_template_build_logs", "build_template"];
/// Nor "JSON" here; published clients send it so.
const JSON_BODIES: &[&str] = &["find_in_files", "read_file", "replace_in_files", "search_files", "write_file"];

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../contract")).join(name)
}

fn contract() -> Value {
    serde_json::from_slice(&fs::read(path("openapi.json")).unwrap()).unwrap()
}

fn update() -> bool {
    std::env::var_os("UPDATE_OPENAPI").is_some()
}

#[test]
fn openapi_document_is_current() {
    let made = serde_json::to_string_pretty(&nullspace_server::openapi()).unwrap() + "\n";
    let file = path("nullspace-openapi.json");
    if update() {
        fs::write(&file, &made).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == made, "{} is stale: run this test with UPDATE_OPENAPI=1 and review the change", file.display());
}

#[test]
fn the_list_of_what_is_not_served_is_exact() {
    let served: BTreeSet<String> = operations(&nullspace_server::openapi()).into_keys().collect();
    let missing: String = operations(&contract())
        .into_iter()
        .filter(|(id, _)| !served.contains(id))
        .map(|(id, operation)| (operation.path, operation.method, id))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|(path, method, id)| format!("{method} {path} {id}\n"))
        .collect();
    let file = path("not-served.txt");
    if update() {
        fs::write(&file, &missing).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        missing,
        "run this test with UPDATE_OPENAPI=1; the list only shrinks"
    );
}

#[test]
fn what_is_served_is_what_the_contract_says() {
    let problems = compare(&nullspace_server::openapi(), &contract());
    assert!(problems.is_empty(), "{} differences:\n{}", problems.len(), problems.join("\n"));
}

/// The comparison itself would be worthless if it overlooked things.
#[test]
fn the_comparison_notices_every_sort_of_difference() {
    let theirs = contract();
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("operation under another id", |d| {
            d["paths"]["/v1/templates"]["get"]["operationId"] = "other".into();
        }),
        ("lost parameter", |d| {
            d["paths"]["/v1/templates/builds/{build_id}/logs"]["get"]["parameters"].as_array_mut().unwrap().pop();
        }),
        ("optional parameter made required", |d| {
            d["paths"]["/v1/templates"]["get"]["parameters"][0]["required"] = true.into();
        }),
        ("lost response", |d| {
            remove(d, "/paths/~1v1~1sandboxes/post/responses", "409");
        }),
        ("other success", |d| {
            let responses = d["paths"]["/v1/templates/builds"]["post"]["responses"].as_object_mut().unwrap();
            let accepted = responses.remove("202").unwrap();
            responses.insert("200".into(), accepted);
        }),
        ("lost property", |d| remove(d, "/components/schemas/TemplateBuild/properties", "queued_at")),
        ("added property", |d| {
            d["components"]["schemas"]["ProcessInfo"]["properties"]["starts"] = serde_json::json!({"type": "integer"});
        }),
        ("other type", |d| {
            d["components"]["schemas"]["ExecResponse"]["properties"]["exit_code"]["type"] = "string".into();
        }),
        ("lost enum value", |d| {
            d["components"]["schemas"]["TemplateBuildStatus"]["enum"].as_array_mut().unwrap().pop();
        }),
        ("added enum value", |d| {
            d["components"]["schemas"]["TemplateBuildLogKind"]["enum"].as_array_mut().unwrap().push("progress".into());
        }),
        ("optional made required", |d| {
            d["components"]["schemas"]["CreateTemplateRequest"]["required"] = serde_json::json!(["name"]);
        }),
        ("required made optional", |d| remove(d, "/components/schemas/TemplateBuild", "required")),
        ("null refused in a request", |d| {
            d["components"]["schemas"]["CreateTemplateRequest"]["properties"]["name"]["type"] = "string".into();
        }),
        ("null in an answer", |d| {
            d["components"]["schemas"]["TemplateBuild"]["properties"]["error"]["type"] =
                serde_json::json!(["string", "null"]);
        }),
        ("lost variant", |d| {
            let steps = &mut d["components"]["schemas"]["CreateTemplateRequest"]["properties"]["steps"];
            steps["items"]["oneOf"].as_array_mut().unwrap().pop();
        }),
        ("lost format", |d| remove(d, "/components/schemas/Time", "format")),
        ("required body made optional", |d| {
            d["paths"]["/v1/sandboxes"]["post"]["requestBody"]["required"] = false.into();
        }),
    ];
    for (what, change) in cases {
        let mut ours = nullspace_server::openapi();
        change(&mut ours);
        assert_ne!(ours, nullspace_server::openapi(), "{what}: the case changes nothing");
        assert!(!compare(&ours, &theirs).is_empty(), "overlooked: {what}");
    }
}

fn remove(document: &mut Value, pointer: &str, key: &str) {
    document.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key).unwrap();
}

struct Operation {
    method: String,
    path: String,
    value: Value,
}

fn operations(document: &Value) -> BTreeMap<String, Operation> {
    let mut found = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, value) in item.as_object().unwrap() {
            let id = value["operationId"].as_str().unwrap().to_owned();
            let operation = Operation { method: method.to_uppercase(), path: path.clone(), value: value.clone() };
            assert!(found.insert(id.clone(), operation).is_none(), "operation {id} exists twice");
        }
    }
    found
}

fn compare(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut comparison =
        Comparison { ours, theirs, problems: Vec::new(), seen: BTreeSet::new(), accepted: accepted(theirs) };
    let contract = operations(theirs);
    let not_served = fs::read_to_string(path("not-served.txt")).unwrap();
    let served = operations(ours);
    for id in contract.keys() {
        if !served.contains_key(id) && !not_served.lines().any(|line| line.split(' ').nth(2) == Some(id)) {
            comparison.problem(id, "is not served and not on the list");
        }
    }
    for (id, operation) in &served {
        match contract.get(id) {
            None if EXTRA_OPERATIONS.contains(&id.as_str()) => {}
            None => comparison.problem(id, "is not in the contract"),
            Some(expected) => comparison.operation(id, operation, expected),
        }
    }
    comparison.problems
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Request,
    Response,
}

struct Comparison<'a> {
    ours: &'a Value,
    theirs: &'a Value,
    problems: Vec<String>,
    seen: BTreeSet<(String, String, Direction)>,
    accepted: BTreeSet<String>,
}

impl Comparison<'_> {
    fn problem(&mut self, place: &str, what: impl AsRef<str>) {
        self.problems.push(format!("{place}: {}", what.as_ref()));
    }

    fn operation(&mut self, id: &str, ours: &Operation, theirs: &Operation) {
        if (&ours.method, &ours.path) != (&theirs.method, &theirs.path) {
            self.problem(id, format!("is {} {}, not {} {}", ours.method, ours.path, theirs.method, theirs.path));
        }
        let parameters = |operation: &Operation| -> BTreeMap<String, Value> {
            let list = operation.value["parameters"].as_array().cloned().unwrap_or_default();
            list.into_iter()
                .map(|parameter| (format!("{} {}", parameter["in"], parameter["name"]), parameter))
                .collect()
        };
        let (mine, expected) = (parameters(ours), parameters(theirs));
        self.same_keys(&format!("{id} parameters"), mine.keys(), expected.keys(), &[]);
        for (name, expected) in &expected {
            let Some(parameter) = mine.get(name) else { continue };
            let place = format!("{id} parameter {name}");
            if parameter["required"].as_bool().unwrap_or(false) != expected["required"].as_bool().unwrap_or(false) {
                self.problem(&place, "differs in being required");
            }
            self.schema(&place, &parameter["schema"], &expected["schema"], Direction::Response);
        }
        match (ours.value.get("requestBody"), theirs.value.get("requestBody")) {
            (None, None) => {}
            (Some(body), None) if EXTRA_BODIES.contains(&id) && body["required"].as_bool() != Some(true) => {}
            (Some(body), Some(expected)) => {
                if body["required"].as_bool().unwrap_or(false) != expected["required"].as_bool().unwrap_or(false) {
                    self.problem(id, "body differs in being required");
                }
                let place = format!("{id} body");
                if JSON_BODIES.contains(&id) {
                    let (ours, theirs) =
                        (&body["content"]["application/json"], &expected["content"]["application/octet-stream"]);
                    self.schema(&place, &ours["schema"], &theirs["schema"], Direction::Request);
                } else {
                    self.content(&place, body, expected, Direction::Request);
                }
            }
            _ => self.problem(id, "one has a body, the other has none"),
        }
        let (responses, expected) = (&ours.value["responses"], &theirs.value["responses"]);
        for (status, expected) in expected.as_object().unwrap() {
            let Some(response) = responses.get(status) else {
                self.problem(id, format!("lacks response {status}"));
                continue;
            };
            let place = format!("{id} {status}");
            if EVENT_STREAMS.contains(&id) && status == "200" {
                let (ours, theirs) =
                    (&response["content"]["text/event-stream"], &expected["content"]["application/json"]);
                self.schema(&place, &ours["schema"], &theirs["schema"], Direction::Response);
            } else if expected.get("content").is_some() || status == "204" {
                self.content(&place, response, expected, Direction::Response);
            }
        }
        for (status, response) in responses.as_object().unwrap() {
            let error =
                response["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/ErrorResponse";
            let extra = EXTRA_RESPONSES.contains(&(id, status.as_str()));
            if expected.get(status).is_none() && !error && !extra {
                self.problem(id, format!("has response {status}, which is not in the contract and no error"));
            }
        }
    }

    fn content(&mut self, place: &str, ours: &Value, theirs: &Value, direction: Direction) {
        let empty = Map::new();
        let ours = ours["content"].as_object().unwrap_or(&empty);
        let theirs = theirs["content"].as_object().unwrap_or(&empty);
        self.same_keys(&format!("{place} media types"), ours.keys(), theirs.keys(), &[]);
        for (media_type, theirs) in theirs {
            if let Some(ours) = ours.get(media_type) {
                // An optional body may be `null` as a whole; that is no property of the schema.
                let ours = without_null(&ours["schema"]);
                self.schema(place, &ours, &theirs["schema"], direction);
            }
        }
    }

    fn same_keys<'k>(
        &mut self,
        place: &str,
        ours: impl Iterator<Item = &'k String>,
        theirs: impl Iterator<Item = &'k String>,
        allowed: &[&str],
    ) {
        let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (ours.collect(), theirs.collect());
        for lost in theirs.difference(&ours) {
            self.problem(place, format!("lacks {lost}"));
        }
        for added in ours.difference(&theirs).filter(|added| !allowed.contains(&added.as_str())) {
            self.problem(place, format!("has {added}, which is not in the contract"));
        }
    }

    /// `place` ends in the contract's name of the schema when it has one.
    fn schema(&mut self, place: &str, ours: &Value, theirs: &Value, direction: Direction) {
        if direction == Direction::Request && is_nullable(theirs) && !is_nullable(ours) {
            self.problem(place, "does not take null");
        }
        if direction == Direction::Response && is_nullable(ours) && !is_nullable(theirs) && !self.is_accepted(place) {
            self.problem(place, "can be null");
        }
        let (ours, theirs) = (without_null(ours), without_null(theirs));
        let our_name = name(&ours);
        let their_name = name(&theirs);
        if let (Some(ours), Some(theirs)) = (&our_name, &their_name)
            && !self.seen.insert((ours.clone(), theirs.clone(), direction))
        {
            return;
        }
        let ours = without_null(&resolve(self.ours, &ours));
        let theirs = without_null(&resolve(self.theirs, &theirs));
        let has_properties = theirs["properties"].as_object().is_some_and(|properties| !properties.is_empty());
        if has_properties && our_name != their_name {
            self.problem(place, format!("is called {our_name:?}, not {their_name:?}"));
        }
        let place = their_name.as_deref().unwrap_or(place);
        if let Some(theirs) = theirs["oneOf"].as_array() {
            return self.one_of(place, &ours, theirs, direction);
        }
        for key in ["type", "format"] {
            let number_size = key == "format" && ["integer", "number"].contains(&theirs["type"].as_str().unwrap_or(""));
            let hint = key == "format" && theirs.get("format").is_none() && ours["format"] == "password";
            if !number_size && !hint && ours.get(key) != theirs.get(key) {
                self.problem(place, format!("has {key} {:?}, not {:?}", ours.get(key), theirs.get(key)));
            }
        }
        let values = |schema: &Value| -> BTreeSet<String> {
            schema["enum"].as_array().into_iter().flatten().map(|value| value.as_str().unwrap().to_owned()).collect()
        };
        let allowed: Vec<&str> =
            EXTRA_ENUM_VALUES.iter().filter(|(schema, _)| *schema == place).map(|(_, value)| *value).collect();
        self.same_keys(&format!("{place} enum"), values(&ours).iter(), values(&theirs).iter(), &allowed);
        if theirs["type"] == "array" {
            self.schema(&format!("{place} items"), &ours["items"], &theirs["items"], direction);
        }
        if theirs["type"] == "object" {
            self.object(place, &ours, &theirs, direction);
        }
    }

    fn object(&mut self, place: &str, ours: &Value, theirs: &Value, direction: Direction) {
        let empty = Map::new();
        let mine = ours["properties"].as_object().unwrap_or(&empty);
        let expected = theirs["properties"].as_object().unwrap_or(&empty);
        let allowed: Vec<&str> = EXTRA_PROPERTIES
            .iter()
            .filter_map(|property| property.split_once('.'))
            .filter(|(schema, _)| *schema == place)
            .map(|(_, property)| property)
            .collect();
        self.same_keys(place, mine.keys(), expected.keys(), &allowed);
        let required = |schema: &Value| -> BTreeSet<String> {
            schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        let (our_required, their_required) = (required(ours), required(theirs));
        self.same_keys(&format!("{place} required"), our_required.iter(), their_required.iter(), &[]);
        for (property, theirs) in expected {
            let Some(ours) = mine.get(property) else { continue };
            let place = format!("{place}.{property}");
            // Published clients send explicit nulls.
            if direction == Direction::Request && !their_required.contains(property) && !is_nullable(ours) {
                self.problem(&place, "is optional in a request but does not take null");
            }
            self.schema(&place, ours, theirs, direction);
        }
    }

    /// Every variant of theirs is exactly one of ours.
    fn one_of(&mut self, place: &str, ours: &Value, theirs: &[Value], direction: Direction) {
        let mut left = ours["oneOf"].as_array().cloned().unwrap_or_default();
        for expected in theirs {
            let fit = left.iter().position(|variant| match (name(variant), name(expected)) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => resolve(self.ours, variant)["type"] == resolve(self.theirs, expected)["type"],
            });
            match fit {
                None => self.problem(place, format!("lacks variant {expected}")),
                Some(index) => {
                    let variant = left.remove(index);
                    self.schema(&format!("{place} variant"), &variant, expected, direction);
                }
            }
        }
        for added in left {
            self.problem(place, format!("has variant {added}, which is not in the contract"));
        }
    }

    /// True for schemas that requests hold too: there `null` has to be allowed.
    fn is_accepted(&self, place: &str) -> bool {
        place.split(['.', ' ']).next().is_some_and(|schema| self.accepted.contains(schema))
    }
}

/// The contract's schemas that requests are made of.
fn accepted(contract: &Value) -> BTreeSet<String> {
    fn walk(contract: &Value, node: &Value, found: &mut BTreeSet<String>) {
        if let Some(name) = name(node)
            && found.insert(name)
        {
            walk(contract, &resolve(contract, node), found);
        }
        match node {
            Value::Object(object) => object.values().for_each(|value| walk(contract, value, found)),
            Value::Array(items) => items.iter().for_each(|value| walk(contract, value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    for operation in operations(contract).values() {
        walk(contract, &operation.value["requestBody"], &mut found);
    }
    found
}

fn name(schema: &Value) -> Option<String> {
    schema["$ref"].as_str()?.rsplit('/').next().map(ToOwned::to_owned)
}

fn resolve(document: &Value, schema: &Value) -> Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap_or_else(|| panic!("no {reference}")).clone(),
        None => schema.clone(),
    }
}

fn is_nullable(schema: &Value) -> bool {
    let in_type = schema["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
    in_type
        || schema["oneOf"].as_array().is_some_and(|variants| variants.iter().any(|variant| variant["type"] == "null"))
}

/// The schema of what is there when it is not null.
fn without_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(types) = schema["type"].as_array() {
        let types: Vec<Value> = types.iter().filter(|name| **name != "null").cloned().collect();
        if let [only] = types.as_slice() {
            schema["type"] = only.clone();
        }
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        let variants: Vec<Value> = variants.iter().filter(|variant| variant["type"] != "null").cloned().collect();
        if let [only] = variants.as_slice() {
            return only.clone();
        }
        schema["oneOf"] = variants.into();
    }
    schema
}
