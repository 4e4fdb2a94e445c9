//! The OpenAPI document, derived from the routes and corrected.
//!
//! ```text
//!   routes ──utoipa──> document ──> name the tag of each union's variants in the variants themselves
//!                               ──> `null` only where it is accepted: in requests, never in answers
//!                               ──> the errors that any operation can end with
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::routes;

const SCHEMAS: &str = "#/components/schemas/";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nullspace",
        version = "1",
        description = "Turns images, Dockerfiles, steps and templates into running microVM snapshots, and resumes them.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    security(("bearer" = [])),
    components(schemas(nullspace_api::ErrorResponse)),
)]
struct Document;

/// The OpenAPI document of this service.
#[must_use]
pub fn openapi() -> Value {
    let (_, mut generated) = utoipa_axum::router::OpenApiRouter::with_openapi(Document::openapi())
        .merge(routes::documented())
        .split_for_parts();
    routes::document_by_reference(&mut generated);
    let mut document = serde_json::to_value(generated).unwrap_or_default();
    document["components"]["securitySchemes"] =
        json!({ "bearer": { "type": "http", "scheme": "bearer", "description": "An API key: `ns_live_…`." } });
    tag_variants(&mut document);
    drop_nulls_from_answers(&mut document);
    add_common_errors(&mut document);
    document
}

/// Moves the tag of a tagged union into its variants, as in the contract. utoipa writes `allOf[variant, {tag}]` for each
/// variant. The union then refers to the variants by name.
fn tag_variants(document: &mut Value) {
    let mut tags: Vec<(String, String, Value)> = Vec::new();
    visit(document, &mut |schema| {
        let Some(variants) = schema.get_mut("oneOf").and_then(Value::as_array_mut) else { return };
        let mut mapping = Map::new();
        let mut tag_name = None;
        for variant in variants {
            let Some([reference, tag]) = variant.get("allOf").and_then(Value::as_array).map(Vec::as_slice) else {
                return;
            };
            let Some(name) = reference["$ref"].as_str().map(ToOwned::to_owned) else { return };
            let Some((tag, property)) = tag["properties"].as_object().and_then(|properties| properties.iter().next())
            else {
                return;
            };
            if let Some(value) = property["enum"][0].as_str() {
                mapping.insert(value.to_owned(), name.clone().into());
            }
            tags.push((name.clone(), tag.clone(), property.clone()));
            tag_name = Some(tag.clone());
            *variant = json!({ "$ref": name });
        }
        if let Some(tag_name) = tag_name {
            schema.insert("discriminator".to_owned(), json!({ "propertyName": tag_name, "mapping": mapping }));
        }
    });
    for (reference, tag, property) in tags {
        let Some(Value::Object(variant)) = document.pointer_mut(&reference[1..]) else { continue };
        let properties = variant.entry("properties").or_insert_with(|| json!({}));
        properties[&tag] = property;
        let required = variant.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut()
            && !required.contains(&json!(tag))
        {
            required.insert(0, json!(tag));
        }
    }
}

/// Removes `null` from answers, which leave unknown fields out. Only bodies of requests can have it.
fn drop_nulls_from_answers(document: &mut Value) {
    let mut accepted = BTreeSet::new();
    let mut bodies = Vec::new();
    visit(&mut document["paths"], &mut |node| {
        if let Some(body) = node.get("requestBody") {
            bodies.push(body.clone());
        }
    });
    for mut body in bodies {
        collect_references(&mut body, document, &mut accepted);
    }
    // What is not given is left out of a header or query, too.
    visit(&mut document["paths"], &mut |node| {
        if let Some(parameters) = node.get_mut("parameters") {
            visit(parameters, &mut drop_null);
        }
    });
    let Some(schemas) = document["components"]["schemas"].as_object_mut() else { return };
    for (name, schema) in schemas {
        if !accepted.contains(name) {
            visit(schema, &mut drop_null);
        }
    }
}

fn collect_references(node: &mut Value, document: &Value, found: &mut BTreeSet<String>) {
    let mut names = Vec::new();
    visit(node, &mut |schema| {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(SCHEMAS)) {
            names.push(name.to_owned());
        }
    });
    for name in names {
        if found.insert(name.clone()) {
            collect_references(&mut document["components"]["schemas"][&name].clone(), document, found);
        }
    }
}

/// `["string", "null"]` becomes `"string"`; `oneOf[null, X]` becomes `X`.
fn drop_null(schema: &mut Map<String, Value>) {
    if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(choices) = schema.get_mut("oneOf").and_then(Value::as_array_mut) {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("oneOf");
            for (key, value) in only {
                // A description of this very field says more than the type's own.
                schema.entry(key).or_insert(value);
            }
        }
    }
}

/// Call `change` on every object of a document, outermost first.
fn visit(node: &mut Value, change: &mut dyn FnMut(&mut Map<String, Value>)) {
    match node {
        Value::Object(object) => {
            change(object);
            for value in object.values_mut() {
                visit(value, change);
            }
        }
        Value::Array(items) => {
            for item in items {
                visit(item, change);
            }
        }
        _ => {}
    }
}

/// Adds the errors of every operation with a key, and those of bodies where there is one.
fn add_common_errors(document: &mut Value) {
    let error = |description: &str| {
        json!({ "description": description,
            "content": { "application/json": { "schema": { "$ref": format!("{SCHEMAS}ErrorResponse") } } } })
    };
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for (path, item) in paths {
        if !path.starts_with("/v1/") {
            continue;
        }
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            let with_body = operation.get("requestBody").is_some();
            let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { continue };
            let mut common = vec![
                ("400", "The request is wrong."),
                ("401", "The key is missing or wrong."),
                ("429", "Too many requests; `Retry-After` says when to come back."),
                ("431", "The headers are too large."),
                ("500", "The service failed to handle the request."),
                ("503", "A backend is down, or no host can take it now."),
            ];
            if with_body {
                common.extend([
                    ("408", "The body did not arrive in time."),
                    ("413", "The body is too large."),
                    ("415", "The body is not JSON."),
                ]);
            }
            for (status, description) in common {
                responses.entry(status).or_insert_with(|| error(description));
            }
        }
    }
}
