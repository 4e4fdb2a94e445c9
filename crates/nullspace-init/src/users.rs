//! Users and groups as the image has them: /etc/passwd and /etc/group, read here.
//!
//! A static binary has no getpwnam, and the image may have no C library at all. The rules are those of Docker's USER
//! (libcontainer's `GetExecUser`): a name is looked up before a number; a number need not exist; supplementary groups
//! come from /etc/group only when no group is named.

use nullspace_guest::message::{Failure, FailureKind};

/// The user and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Name for USER and LOGNAME; the number when /etc/passwd does not know it.
    pub(crate) name: String,
    /// HOME; `/` when /etc/passwd does not know the user.
    pub(crate) home: String,
}

/// The image's two files; an absent one is empty.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Highest id: -1 means "leave it" to the kernel.
const MAX_ID: u32 = i32::MAX as u32;
/// Supplementary groups that the kernel takes (NGROUPS_MAX is 65536; no image needs more than this).
const MAX_GROUPS: usize = 1024;

fn unknown(message: String) -> Failure {
    Failure { kind: FailureKind::UnknownUser, message }
}

fn id(text: &str) -> Option<u32> {
    // `parse` takes a leading plus.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

impl Accounts {
    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            let _password = fields.next()?;
            let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
            let _comment = fields.next();
            let home = fields.next().unwrap_or_default();
            Some(User { name, uid, gid, home, shell: fields.next().unwrap_or_default() })
        })
    }

    /// Names of users with their numbers, in the file's order.
    pub(crate) fn user_names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.users().map(|user| (user.name, user.uid))
    }

    /// The shell of the user with this number, if the file names one.
    pub(crate) fn shell(&self, uid: u32) -> Option<&str> {
        let user = self.users().find(|user| user.uid == uid)?;
        (!user.shell.is_empty()).then_some(user.shell)
    }

    /// Names of groups with their numbers, in the file's order.
    pub(crate) fn group_names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.groups().map(|group| (group.name, group.gid))
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            let _password = fields.next()?;
            let gid = id(fields.next()?)?;
            Some(Group { name, gid, members: fields.next().unwrap_or_default() })
        })
    }

    /// The line for /etc/passwd that an image lacks for its user with an unknown number. `None` when the image has the line,
    /// when the user cannot be resolved, or when another user has the name.
    pub(crate) fn imported(&self, spec: &str) -> Option<String> {
        let account = self.resolve(spec).ok()?;
        let name = format!("nullspace-imported-{}", account.uid);
        let known = self.users().any(|user| user.uid == account.uid || user.name == name);
        (!known).then(|| format!("{name}:x:{}:{}::{}:/bin/sh\n", account.uid, account.gid, account.home))
    }

    /// Resolves `user`, `uid`, `user:group`, `uid:gid` and so on; empty is root.
    pub(crate) fn resolve(&self, spec: &str) -> Result<Account, Failure> {
        let (user_part, group_part) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let user_part = if user_part.is_empty() { "0" } else { user_part };
        let number = id(user_part);
        let known = self
            .users()
            .find(|user| user.name == user_part)
            .or_else(|| number.and_then(|uid| self.users().find(|user| user.uid == uid)));
        let mut account = match (known, number) {
            (Some(user), _) => Account {
                uid: user.uid,
                gid: user.gid,
                groups: Vec::new(),
                name: user.name.to_owned(),
                home: if user.home.starts_with('/') { user.home.to_owned() } else { "/".to_owned() },
            },
            (None, Some(uid)) => {
                Account { uid, gid: 0, groups: Vec::new(), name: uid.to_string(), home: "/".to_owned() }
            }
            (None, None) => {
                return Err(unknown(format!("User `{user_part}` is not in the image's /etc/passwd.")));
            }
        };
        match group_part {
            Some(group) => {
                let found = self.groups().find(|known| known.name == group).map(|known| known.gid);
                account.gid = found
                    .or_else(|| id(group))
                    .ok_or_else(|| unknown(format!("Group `{group}` is not in the image's /etc/group.")))?;
            }
            None => {
                let member = |group: &Group<'_>| group.members.split(',').any(|name| name.trim() == account.name);
                account.groups = self.groups().filter(member).map(|group| group.gid).take(MAX_GROUPS).collect();
            }
        }
        Ok(account)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # a comment:x:5:5::/:\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        1234:x:77:78:a name that is a number:/n:/bin/sh\n\
        nohome:x:50:50\n\
        broken:x:minus:1::/:\n\
        +::::::\n\
        toolong:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:daemon,app\ndocker:x:998: app , other\napp:x:1001:\n1001:x:42:\nbad\n";

    #[test]
    fn a_number_without_an_account_gets_one() {
        let accounts = Accounts { passwd: PASSWD.into(), group: GROUP.into() };
        for (spec, line) in [
            ("4321", Some("nullspace-imported-4321:x:4321:0::/:/bin/sh\n")),
            ("4321:2345", Some("nullspace-imported-4321:x:4321:2345::/:/bin/sh\n")),
            ("4321:app", Some("nullspace-imported-4321:x:4321:1001::/:/bin/sh\n")),
            ("1000", None),
            // A name, though it looks like a number.
            ("1234", None),
            ("app:5", None),
            ("", None),
            ("nobody", None),
            ("4321:nobody", None),
        ] {
            assert_eq!(accounts.imported(spec).as_deref(), line, "{spec}");
        }
        let taken = Accounts { passwd: "nullspace-imported-7:x:8:8::/:\n".into(), group: String::new() };
        assert_eq!(taken.imported("7"), None);
    }

    #[test]
    fn specs_resolve_as_in_docker() {
        let accounts = Accounts { passwd: PASSWD.into(), group: GROUP.into() };
        // spec, then "uid gid groups name home", or the name that is unknown
        let cases: &[(&str, Result<&str, &str>)] = &[
            ("", Ok("0 0 [] root /root")),
            ("root", Ok("0 0 [] root /root")),
            ("0", Ok("0 0 [] root /root")),
            (":", Ok("0 0 [] root /root")),
            (":adm", Ok("0 4 [] root /root")),
            ("app", Ok("1000 1001 [4, 998] app /home/app")),
            ("1000", Ok("1000 1001 [4, 998] app /home/app")),
            ("app:", Ok("1000 1001 [4, 998] app /home/app")),
            ("app:adm", Ok("1000 4 [] app /home/app")),
            ("app:4", Ok("1000 4 [] app /home/app")),
            ("app:5555", Ok("1000 5555 [] app /home/app")),
            ("1000:docker", Ok("1000 998 [] app /home/app")),
            ("4242", Ok("4242 0 [] 4242 /")),
            ("4242:4343", Ok("4242 4343 [] 4242 /")),
            ("4242:adm", Ok("4242 4 [] 4242 /")),
            // A name wins over a number, for users and for groups.
            ("1234", Ok("77 78 [] 1234 /n")),
            ("app:1001", Ok("1000 42 [] app /home/app")),
            ("nohome", Ok("50 50 [] nohome /")),
            ("bob", Err("bob")),
            ("broken", Err("broken")),
            ("toolong", Err("toolong")),
            ("app:nobody", Err("nobody")),
            ("-1", Err("-1")),
            ("+5", Err("+5")),
            ("4294967295", Err("4294967295")),
            ("4242:99999999999", Err("99999999999")),
            ("# a comment", Err("# a comment")),
        ];
        for (spec, expected) in cases {
            let got = accounts.resolve(spec);
            match (got, expected) {
                (Ok(a), Ok(expected)) => {
                    let got = format!("{} {} {:?} {} {}", a.uid, a.gid, a.groups, a.name, a.home);
                    assert_eq!(&got, expected, "{spec}");
                }
                (Err(failure), Err(name)) => {
                    assert_eq!(failure.kind, FailureKind::UnknownUser, "{spec}");
                    assert!(failure.message.contains(&format!("`{name}`")), "{spec}: {failure}");
                }
                (got, expected) => panic!("{spec}: {got:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_shell_is_the_last_field() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbare:x:1:1::/b:\nshort:x:2:2\n".to_owned();
        let accounts = Accounts { passwd, group: String::new() };
        let shells = [0, 1, 2, 3].map(|uid| accounts.shell(uid));
        assert_eq!(shells, [Some("/bin/bash"), None, None, None]);
    }

    #[test]
    fn an_image_without_files_has_root_and_numbers() {
        let none = Accounts::default();
        assert_eq!(none.resolve("").map(|a| (a.uid, a.home)), Ok((0, "/".to_owned())));
        assert_eq!(none.resolve("65532:65532").map(|a| (a.uid, a.gid)), Ok((65532, 65532)));
        assert!(none.resolve("root").is_err());
    }

    proptest! {
        #[test]
        fn hostile_files_do_not_panic(passwd in "\\PC{0,200}", group in "[a-z0-9:,\\n]{0,200}", spec in "\\PC{0,20}") {
            let accounts = Accounts { passwd, group };
            let _ = accounts.resolve(&spec);
        }
    }
}
