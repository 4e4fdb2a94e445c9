//! JSON as Docker reads it: Go's decoder takes `null` for any field and leaves the zero value, takes a missing field the
//! same way, and the last of two equal keys. Images in the wild rely on all three.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// For `#[serde(default, deserialize_with = …)]`: `null` is the default value.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's `map[string]struct{}` used as a set: only the keys count.
pub(crate) fn key_set<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let map = Option::<serde_json::Map<String, Value>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_iter().map(|(key, _)| key).collect())
}

/// A list of texts in which Docker also takes a single text (`strslice.StrSlice`); `null` elements are empty texts.
pub(crate) fn string_list<'de, D>(deserializer: D) -> Result<Option<Vec<String>>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<Option<String>>),
        One(String),
    }
    Ok(Option::<Form>::deserialize(deserializer)?.map(|form| match form {
        Form::List(list) => list.into_iter().map(Option::unwrap_or_default).collect(),
        Form::One(text) => vec![text],
    }))
}

/// [`string_list`] for fields where a missing list and an empty one mean the same.
pub(crate) fn string_list_or_empty<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(string_list(deserializer)?.unwrap_or_default())
}

/// A map of texts; `null` values are empty texts.
pub(crate) fn string_map<'de, D>(deserializer: D) -> Result<std::collections::BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let map = Option::<std::collections::BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

/// Parses by way of [`Value`], so that a repeated key is not an error: the last one counts.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::from_slice::<Value>(bytes)?)
}
