//! Variables that begin with `NULLSPACE_` and that nothing reads.
//!
//! A variable that looks like a setting's is an error: whoever misspells `NULLSPACE_LISTEN` would run a service that listens
//! elsewhere. Others are warned of only: an orchestrator sets such names by itself for a service called `nullspace`
//! (`NULLSPACE_SERVICE_HOST`).

use anyhow::bail;

use super::KEYS;

const PREFIX: &str = "NULLSPACE_";
/// Letters that may be wrong in a name that is still taken for a setting's.
const MAX_DISTANCE: usize = 2;
/// Variables that are no settings: of the client, its published tests, the command line, and this project's tests and tools.
const OTHERS: &[&str] =
    &["API_KEY", "API_URL", "CONFIG", "FIRECRACKER_SOAK", "INIT", "INTEGRATION", "PROGRAM", "SECONDARY_API_KEY"];
/// What else such names begin with.
const OTHER_PREFIXES: &[&str] = &["TEST_", "NESTED_", "BENCH_"];

/// Refuses what looks like a misspelt setting; returns a warning for each other variable that nothing reads.
pub(crate) fn unread(names: impl Iterator<Item = String>) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut misspelt = Vec::new();
    for name in names {
        let upper = name.to_uppercase();
        let Some(key) = upper.strip_prefix(PREFIX) else { continue };
        let is_setting = KEYS.iter().any(|(known, _)| known.eq_ignore_ascii_case(key));
        let is_known =
            is_setting || OTHERS.contains(&key) || OTHER_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        if is_known && name == upper {
            continue;
        }
        let (nearest, distance) = nearest(key);
        // One letter of three may be wrong; what lacks its unit or has one too many is meant too.
        let alike = distance <= MAX_DISTANCE && distance * 3 <= key.len() || begins(&nearest, key);
        if alike {
            misspelt.push(format!("{name} is no setting: is {PREFIX}{nearest} meant?"));
        } else {
            warnings.push(format!("nothing reads the variable {name}; the nearest setting is {PREFIX}{nearest}"));
        }
    }
    if !misspelt.is_empty() {
        bail!("{}", misspelt.join("; "));
    }
    Ok(warnings)
}

/// The setting that is spelt most like this, and how many letters are otherwise.
fn nearest(key: &str) -> (String, usize) {
    let known = KEYS.iter().map(|(known, _)| known.to_uppercase()).chain(OTHERS.iter().map(|&other| other.to_owned()));
    let measured = known.map(|known| {
        let distance = distance(&known, key);
        (distance > MAX_DISTANCE, !begins(&known, key), distance, known)
    });
    measured.min().map(|(.., distance, known)| (known, distance)).unwrap_or_default()
}

/// Whether one is the beginning of the other, up to an underscore.
fn begins(one: &str, other: &str) -> bool {
    let behind = one.strip_prefix(other).or_else(|| other.strip_prefix(one));
    behind.is_some_and(|rest| rest.starts_with('_'))
}

/// Letters to be put in, left out, changed, or swapped with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().take(200).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let above = |back: usize, left: usize| -> usize {
                rows.get((i + 1).wrapping_sub(back))
                    .and_then(|row| row.get((j + 1).wrapping_sub(left)))
                    .copied()
                    .unwrap_or(usize::MAX / 2)
            };
            let mut best = (above(1, 1) + usize::from(a != b)).min(above(1, 0) + 1);
            best = best.min(row.last().copied().unwrap_or_default() + 1);
            let swapped = i > 0 && j > 0 && one.get(i - 1) == Some(b) && other.get(j - 1) == Some(a);
            if swapped {
                best = best.min(above(2, 2) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(names: &[&str]) -> Result<Vec<String>, String> {
        unread(names.iter().map(|&name| name.to_owned())).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_misspelling_of_a_setting_by_one_letter_names_it() {
        for (key, _) in KEYS {
            let key = key.to_uppercase();
            let name = format!("{PREFIX}{key}");
            assert_eq!(said(&[&name]), Ok(Vec::new()));
            assert!(said(&[&name.to_lowercase()]).unwrap_err().contains(&name), "{name} in small letters");
            for at in PREFIX.len()..name.len() {
                let mut without = name.clone();
                without.remove(at);
                let mut doubled = name.clone();
                doubled.insert(at, 'X');
                for wrong in [without, doubled].iter().filter(|wrong| {
                    KEYS.iter().all(|(known, _)| format!("{PREFIX}{}", known.to_uppercase()) != **wrong)
                }) {
                    let about = match said(&[wrong]) {
                        Err(error) => error,
                        // Too short to be sure of.
                        Ok(warnings) if key.len() <= 5 => warnings.join(" "),
                        Ok(warnings) => panic!("{wrong}: {warnings:?}"),
                    };
                    assert!(about.contains(PREFIX), "{wrong}: {about}");
                }
            }
        }
    }

    #[test]
    fn what_is_meant_is_named() {
        for (wrong, meant) in [
            ("NULLSPACE_DATADIR", "NULLSPACE_DATA_DIR"),
            ("NULLSPACE_LITSEN", "NULLSPACE_LISTEN"),
            ("NULLSPACE_MEMORY_MB", "NULLSPACE_MEMORY_MIB"),
            ("NULLSPACE_BUILD_TIMEOUT", "NULLSPACE_BUILD_TIMEOUT_SECS"),
            ("NULLSPACE_LISTEN_ADDRESS", "NULLSPACE_LISTEN"),
            ("NULLSPACE_APIKEY", "NULLSPACE_API_KEY"),
            ("NULLSPACE_REQUEST_PER_SECOND", "NULLSPACE_REQUESTS_PER_SECOND"),
        ] {
            let error = said(&[wrong]).unwrap_err();
            assert!(error.contains(wrong) && error.contains(&format!("is {meant} meant")), "{wrong}: {error}");
        }
        let both = said(&["NULLSPACE_DATADIR", "NULLSPACE_LITSEN"]).unwrap_err();
        assert!(both.contains("DATADIR") && both.contains("LITSEN"), "{both}");
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let ours =
            ["NULLSPACE_API_KEY", "NULLSPACE_API_URL", "NULLSPACE_CONFIG", "NULLSPACE_TEST_SEED", "PATH", "NULL"];
        assert_eq!(said(&ours), Ok(Vec::new()));
        // As Kubernetes sets them.
        for name in
            ["NULLSPACE_SERVICE_HOST", "NULLSPACE_SERVICE_PORT", "NULLSPACE_PORT", "NULLSPACE_PORT_3000_TCP_ADDR"]
        {
            let warnings = said(&[name]).unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
        }
    }
}
