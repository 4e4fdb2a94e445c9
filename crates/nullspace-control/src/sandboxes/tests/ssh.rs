//! SSH accesses: who makes one, whom it lets in, and when it is over.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode as Code, SshAccessRequest, SshAccessResponse};
use nullspace_db::{KeySpec, NamespaceKind, NewKey};
use nullspace_service::{
    Error, Keys as _, Sandboxes as _, SshAccesses as _, SshCertificate, SshCertificates, SshLogin, SshWanted,
};
use nullspace_types::{Caller, SandboxId, SshAccessId};
use serde_json::json;

use super::{House, at, usual};

/// Certificates as text.
struct Plain;

impl SshCertificates for Plain {
    fn certify(&self, wanted: SshWanted<'_>) -> nullspace_service::Result<SshCertificate> {
        if wanted.public_key != "a key" {
            return Err(Error::invalid("public_key is not a public key"));
        }
        let lasts = wanted.expires_at.duration_since(wanted.now);
        let near = |secs| (lasts - SignedDuration::from_secs(secs)).abs() <= SignedDuration::from_secs(1);
        assert!(near(3600) || near(600), "{lasts}");
        Ok(SshCertificate {
            certificate: format!("{} {}", wanted.sandbox, wanted.access),
            host_key: "host key".into(),
            host: "ssh.example".into(),
            port: 2222,
        })
    }
}

impl House {
    /// The tenant, with a new key.
    async fn ssh_caller(&self) -> Caller {
        let (key, spec) = (NewKey::generate(), KeySpec::default());
        let db = &self.control.inner.db;
        let made = db.create_key(self.caller.tenant, &key, spec, None, Timestamp::now()).await.unwrap();
        Caller { key: Some(made.id), ..self.caller.clone() }
    }

    async fn access(&self, caller: &Caller, id: &str) -> Result<SshAccessResponse, Code> {
        let request = SshAccessRequest { public_key: "a key".into(), user: Some("me".into()), ..Default::default() };
        self.control.create_ssh_access(caller, id, request).await.map_err(|error| error.code)
    }

    async fn login(&self, id: &str, access: &str) -> Result<Caller, Code> {
        let login = SshLogin { sandbox: id.parse().unwrap(), access: access.parse().unwrap() };
        let entered = self.control.ssh_login(login).await.map_err(|error| error.code)?;
        assert_eq!((entered.sandbox, entered.user.as_deref()), (login.sandbox, Some("me")));
        Ok(entered.caller)
    }

    async fn is_in_force(&self, access: &str) -> bool {
        let access: SshAccessId = access.parse().unwrap();
        self.control.ssh_accesses_in_force(&[access, SshAccessId::new()]).await.unwrap() == [access]
    }
}

#[tokio::test]
async fn an_access_is_made_by_the_owner_where_there_is_a_server() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let caller = house.ssh_caller().await;
    let stranger = house.control.inner.db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    assert_eq!(house.access(&stranger, &id).await.unwrap_err(), Code::SandboxNotFound);
    let request = SshAccessRequest { public_key: "a key".into(), ..Default::default() };
    let none = house.control.create_ssh_access(&caller, &id, request).await.unwrap_err();
    assert!(none.code == Code::FeatureUnavailable && none.message.contains("ssh_listen"), "{none}");

    house.control.use_ssh(Arc::new(Plain));
    assert_eq!(house.access(&stranger, &id).await.unwrap_err(), Code::SandboxNotFound);
    let made = house.access(&caller, &id).await.unwrap();
    assert_eq!(made.certificate, format!("{id} {}", made.access_id));
    assert_eq!((made.user.as_str(), made.port, made.host_key.as_deref()), (id.as_str(), 2222, Some("host key")));
    assert_eq!(made.command, format!("ssh -p 2222 {id}@ssh.example"));
    let wrong = [
        SshAccessRequest { public_key: "no key".into(), ..Default::default() },
        SshAccessRequest { public_key: "a key".into(), user: Some(String::new()), ..Default::default() },
        SshAccessRequest { public_key: "a key".into(), ttl_seconds: Some(0), ..Default::default() },
    ];
    for request in wrong {
        let refused = house.control.create_ssh_access(&caller, &id, request.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidRequest, "{request:?}");
    }
    let both = SshAccessRequest { ttl_seconds: Some(86_400), expires_in_minutes: Some(10), ..wanted() };
    house.control.create_ssh_access(&caller, &id, both).await.unwrap();
    for _ in 2..64 {
        house.access(&caller, &id).await.unwrap();
    }
    assert_eq!(house.access(&caller, &id).await.unwrap_err(), Code::RateLimitExceeded);
    house.control.stop().await;
}

fn wanted() -> SshAccessRequest {
    SshAccessRequest { public_key: "a key".into(), ..Default::default() }
}

#[tokio::test]
async fn an_access_lets_in_to_its_sandbox_until_that_or_its_key_is_over() {
    let house = House::new(usual()).await;
    house.control.use_ssh(Arc::new(Plain));
    let (id, other) = (house.create(json!({})).await, house.create(json!({})).await);
    let (caller, lasting) = (house.ssh_caller().await, house.ssh_caller().await);
    let first = house.access(&caller, &id).await.unwrap().access_id;
    let second = house.access(&lasting, &id).await.unwrap().access_id;
    assert_eq!(house.login(&id, &first).await.unwrap(), caller);
    assert_eq!(house.login(&other, &first).await.unwrap_err(), Code::SandboxNotFound, "it is one of another sandbox");
    assert_eq!(house.login(&SandboxId::new().to_string(), &first).await.unwrap_err(), Code::SandboxNotFound);

    // It may be paused: a session resumes it, or says that it is paused.
    house.pause(&id).await.unwrap();
    house.login(&id, &first).await.unwrap();

    house.control.revoke_key(&lasting, &caller.key.unwrap().to_string()).await.unwrap();
    assert!(house.login(&id, &first).await.is_err() && !house.is_in_force(&first).await);
    assert!(house.login(&id, &second).await.is_ok() && house.is_in_force(&second).await);
    house.control.destroy_sandbox(&lasting, &id).await.unwrap();
    assert!(house.login(&id, &second).await.is_err() && !house.is_in_force(&second).await);
    assert_eq!(house.access(&lasting, &id).await.unwrap_err(), Code::SandboxNotFound);
    house.control.stop().await;
}
