//! Egress policies of requests: read from the wire, and shown on it.

use nullspace_api::{
    CreateSandboxRequest, EgressRateLimit, NetworkCreateConfig, NetworkEgressPolicy, NetworkEgressPolicyMode,
};
use nullspace_types::{
    EGRESS_BURST, EGRESS_KBIT, EGRESS_PPS, EgressPolicy, EgressRate, EgressReach, MAX_EGRESS_NETWORKS,
    parse_egress_network,
};

use crate::problems::{Invalid, Wrong};

/// Reads a policy that is to hold from now on.
///
/// # Errors
/// [`Invalid`] with all its problems.
pub fn check_egress(given: &NetworkEgressPolicy) -> Result<EgressPolicy, Invalid> {
    let mut wrong = Wrong::default();
    let policy = policy(&mut wrong, "egress", given);
    wrong.result()?;
    Ok(policy)
}

/// Reads the policy that a create asks for, as `egress` or as `allow_out` and `deny_out`. `None` when it asks for none.
///
/// # Errors
/// [`Invalid`] with all its problems.
pub fn requested_egress(request: &CreateSandboxRequest) -> Result<Option<EgressPolicy>, Invalid> {
    let mut wrong = Wrong::default();
    let policy = requested(&mut wrong, request);
    wrong.result()?;
    Ok(policy)
}

pub(crate) fn requested(wrong: &mut Wrong, request: &CreateSandboxRequest) -> Option<EgressPolicy> {
    let NetworkCreateConfig { egress, deny_out, allow_out, .. } = request.network.as_ref()?;
    let listed = [allow_out, deny_out].into_iter().flatten().any(|list| !list.is_empty());
    let asked = match egress {
        Some(_) if listed => {
            wrong.say("network.egress", "is given together with allow_out or deny_out: give one form");
            None
        }
        Some(given) => Some(policy(wrong, "network.egress", given)),
        None if listed => Some(EgressPolicy {
            reach: EgressReach::Lists {
                allow: networks(wrong, "network.allow_out", allow_out.as_deref()),
                deny: networks(wrong, "network.deny_out", deny_out.as_deref()),
            },
            rate: EgressRate::default(),
        }),
        None => None,
    }?;
    if request.internet_access == Some(false) && !asked.denies_all() {
        wrong.say(
            "internet_access",
            "is false, and network allows some destinations: leave internet_access out, and deny 0.0.0.0/0 beside the allowed ones",
        );
    }
    Some(asked)
}

/// Shows a policy as the API does.
pub fn wire(policy: &EgressPolicy) -> NetworkEgressPolicy {
    let texts = |list: &[_]| -> Option<Vec<String>> {
        (!list.is_empty()).then(|| list.iter().map(ToString::to_string).collect())
    };
    let (mode, allow_cidrs, deny_cidrs) = match &policy.reach {
        EgressReach::All => (NetworkEgressPolicyMode::AllowAll, None, None),
        EgressReach::Lists { allow, deny } => (NetworkEgressPolicyMode::Custom, texts(allow), texts(deny)),
        EgressReach::Nothing => (NetworkEgressPolicyMode::DenyAll, None, None),
    };
    let EgressRate { kbit_per_sec, pps, burst } = policy.rate;
    let limited = policy.rate != EgressRate::default();
    let rate_limit = limited.then_some(EgressRateLimit { kbit_per_sec, pps, burst });
    NetworkEgressPolicy { mode, allow_cidrs, deny_cidrs, rate_limit }
}

fn policy(wrong: &mut Wrong, field: &str, given: &NetworkEgressPolicy) -> EgressPolicy {
    let NetworkEgressPolicy { mode, allow_cidrs, deny_cidrs, rate_limit } = given;
    let allow = networks(wrong, &format!("{field}.allow_cidrs"), allow_cidrs.as_deref());
    let deny = networks(wrong, &format!("{field}.deny_cidrs"), deny_cidrs.as_deref());
    let listed = [allow_cidrs, deny_cidrs].into_iter().flatten().any(|list| !list.is_empty());
    let reach = match mode {
        NetworkEgressPolicyMode::AllowAll => EgressReach::All,
        NetworkEgressPolicyMode::Custom => EgressReach::Lists { allow, deny },
        NetworkEgressPolicyMode::DenyAll => EgressReach::Nothing,
    };
    match (mode, listed) {
        (NetworkEgressPolicyMode::Custom, false) => {
            wrong.say(&format!("{field}.mode"), "is custom: give allow_cidrs, deny_cidrs or both");
        }
        (NetworkEgressPolicyMode::AllowAll | NetworkEgressPolicyMode::DenyAll, true) => {
            wrong.say(&format!("{field}.mode"), "must be custom where allow_cidrs or deny_cidrs is given");
        }
        _ => {}
    }
    EgressPolicy { reach, rate: rate(wrong, &format!("{field}.rate_limit"), rate_limit.as_ref()) }
}

fn networks(wrong: &mut Wrong, field: &str, given: Option<&[String]>) -> Vec<ipnet::IpNet> {
    let given = given.unwrap_or_default();
    if given.len() > MAX_EGRESS_NETWORKS {
        wrong.say(field, format_args!("has {} entries: at most {MAX_EGRESS_NETWORKS} are possible", given.len()));
        return Vec::new();
    }
    let mut networks = Vec::new();
    for (index, text) in given.iter().enumerate() {
        match parse_egress_network(text) {
            Ok(network) => networks.push(network),
            Err(why) => {
                let shown: String = text.chars().take(60).collect();
                wrong.say(&format!("{field}[{index}]"), format_args!("'{}' {why}", shown.escape_debug()));
            }
        }
    }
    networks
}

fn rate(wrong: &mut Wrong, field: &str, given: Option<&EgressRateLimit>) -> EgressRate {
    let Some(EgressRateLimit { kbit_per_sec, pps, burst }) = given.cloned() else { return EgressRate::default() };
    for (name, value, range) in
        [("kbit_per_sec", kbit_per_sec, EGRESS_KBIT), ("pps", pps, EGRESS_PPS), ("burst", burst, EGRESS_BURST)]
    {
        value.iter().for_each(|value| wrong.range(&format!("{field}.{name}"), *value, *range.start(), *range.end()));
    }
    if burst.is_some() && pps.is_none() {
        wrong.say(&format!("{field}.burst"), "counts packets beyond pps: give pps, too");
    }
    EgressRate { kbit_per_sec, pps, burst }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(policy: Value) -> Result<EgressPolicy, String> {
        check_egress(&serde_json::from_value(policy).unwrap()).map_err(|error| error.to_string())
    }

    fn asked(network: Value) -> Result<Option<EgressPolicy>, String> {
        let request = serde_json::from_value(json!({ "network": network })).unwrap();
        requested_egress(&request).map_err(|error| error.to_string())
    }

    #[test]
    fn every_mode_is_read_and_shown_as_it_was_given() {
        for given in [
            json!({"mode": "allow_all"}),
            json!({"mode": "deny_all"}),
            json!({"mode": "custom", "allow_cidrs": ["1.2.3.0/24", "2001:db8::/32"], "deny_cidrs": ["0.0.0.0/0"]}),
            json!({"mode": "custom", "deny_cidrs": ["10.0.0.0/8"], "rate_limit": {"kbit_per_sec": 1000}}),
            json!({"mode": "allow_all", "rate_limit": {"pps": 100, "burst": 5}}),
        ] {
            let policy = read(given.clone()).unwrap();
            assert_eq!(json!(wire(&policy)), given);
            assert_eq!(asked(json!({ "egress": given })).unwrap(), Some(policy));
        }
        assert!(
            read(json!({"mode": "allow_all", "allow_cidrs": null, "deny_cidrs": [], "rate_limit": {}}))
                .unwrap()
                .is_open()
        );
    }

    #[test]
    fn both_forms_of_a_create_mean_the_same_and_exclude_each_other() {
        let lists = asked(json!({"allow_out": ["1.2.3.4"], "deny_out": ["0.0.0.0/0"]})).unwrap();
        let egress = json!({"mode": "custom", "allow_cidrs": ["1.2.3.4/32"], "deny_cidrs": ["0.0.0.0/0"]});
        assert_eq!(lists, asked(json!({ "egress": egress })).unwrap());
        for none in [json!({}), json!({"allow_out": [], "deny_out": null}), json!({"allow_public_traffic": false})] {
            assert_eq!(asked(none).unwrap(), None);
        }
        let both = asked(json!({"egress": {"mode": "deny_all"}, "deny_out": ["1.1.1.1"]})).unwrap_err();
        assert!(both.contains("network.egress") && both.contains("one form"), "{both}");
        let closed = |network| {
            let request = serde_json::from_value(json!({"internet_access": false, "network": network})).unwrap();
            requested_egress(&request)
        };
        assert!(closed(json!({"allow_out": ["1.2.3.4"]})).is_err());
        assert!(closed(json!({"egress": {"mode": "deny_all"}})).is_ok() && closed(json!({})).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let many: Vec<String> = (0..65).map(|number| format!("10.0.0.{number}")).collect();
        for (given, said) in [
            (json!({"mode": "custom"}), "egress.mode"),
            (json!({"mode": "allow_all", "deny_cidrs": ["1.1.1.1"]}), "must be custom"),
            (json!({"mode": "deny_all", "allow_cidrs": ["1.1.1.1"]}), "must be custom"),
            (
                json!({"mode": "custom", "allow_cidrs": ["1.1.1.1", "example.com"]}),
                "egress.allow_cidrs[1] 'example.com'",
            ),
            (json!({"mode": "custom", "deny_cidrs": ["*.example.com"]}), "host names are not supported"),
            (json!({"mode": "custom", "deny_cidrs": ["10.1.2.3/8"]}), "10.0.0.0/8"),
            (json!({"mode": "custom", "deny_cidrs": many}), "at most 64"),
            (json!({"mode": "allow_all", "rate_limit": {"kbit_per_sec": 7}}), "8 to 10000000"),
            (json!({"mode": "allow_all", "rate_limit": {"pps": 0}}), "1 to 10000000"),
            (json!({"mode": "allow_all", "rate_limit": {"pps": 1, "burst": 0}}), "1 to 1000000"),
            (json!({"mode": "allow_all", "rate_limit": {"burst": 5}}), "give pps"),
        ] {
            let error = read(given.clone()).unwrap_err();
            assert!(error.contains(said), "{given}: {error}");
        }
        let error = asked(json!({"allow_out": ["a.b"], "deny_out": ["c"]})).unwrap_err();
        assert!(error.contains("network.allow_out[0]") && error.contains("network.deny_out[0]"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_network_or_refused_and_never_more(texts in proptest::collection::vec("[ -~]{0,24}", 1..4)) {
            let given = NetworkEgressPolicy {
                mode: NetworkEgressPolicyMode::Custom,
                allow_cidrs: Some(texts),
                deny_cidrs: None,
                rate_limit: None,
            };
            if let Ok(policy) = check_egress(&given) {
                prop_assert_eq!(check_egress(&wire(&policy)).unwrap(), policy);
            }
        }
    }
}
