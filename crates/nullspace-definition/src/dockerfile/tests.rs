use proptest::prelude::*;

use super::*;

fn outline_of(text: &str) -> Outline {
    outline(text, &BTreeMap::new(), None).unwrap()
}

fn refusal(text: &str, target: Option<&str>, secrets: &RequestSecrets) -> String {
    let mut wrong = Wrong::default();
    check(text, &BTreeMap::new(), target, secrets, &mut wrong);
    wrong.into_message()
}

fn secrets(value: serde_json::Value) -> RequestSecrets {
    let mut request: nullspace_api::CreateTemplateRequest = serde_json::from_value(value).unwrap();
    request.take_secrets()
}

#[test]
fn the_chosen_stage_is_the_last_and_stands_on_others() {
    let text = "# syntax=docker/dockerfile:1\nARG TAG=12\nFROM debian:${TAG} AS Base\nENV A=1 B=\"two words\"\nRUN one\n\
                FROM golang:1 AS build\nRUN two\nFROM base\nWORKDIR /srv\nWORKDIR app\nUSER app:app\n\
                COPY --from=build /out /bin/\nCOPY --from=alpine:3 /x /y\nEXPOSE 80\nCMD [\"serve\", \"a b\"]\n";
    let last = outline_of(text);
    assert_eq!(last.base, "debian:12");
    let images: Vec<(&str, u32, bool, bool)> =
        last.images.iter().map(|i| (i.reference.as_str(), i.line, i.variable, i.is_from)).collect();
    assert_eq!(
        images,
        [("debian:12", 3, true, true), ("golang:1", 6, false, true), ("alpine:3", 13, false, false)],
        "every image with its line"
    );
    let steps: Vec<(&str, &str, u32)> =
        last.steps.iter().map(|s| (s.instruction.as_str(), s.arguments.as_str(), s.line)).collect();
    assert_eq!(
        steps,
        [
            ("ENV", "A=1 B=\"two words\"", 4),
            ("RUN", "one", 5),
            ("WORKDIR", "/srv", 9),
            ("WORKDIR", "app", 10),
            ("USER", "app:app", 11),
            ("COPY", "--from=build /out /bin/", 12),
            ("COPY", "--from=alpine:3 /x /y", 13),
            ("EXPOSE", "80", 14),
            ("CMD", "serve 'a b'", 15),
        ]
    );
    assert_eq!(last.envs, [("A".into(), "1".into()), ("B".into(), "two words".into())]);
    assert_eq!((last.user.as_deref(), last.workdir.as_deref()), (Some("app:app"), Some("/srv/app")));
    assert_eq!(last.start.as_deref(), Some("serve 'a b'"));
    assert_eq!(last.ignored, [("EXPOSE".to_owned(), 14)]);

    let args = BTreeMap::from([("TAG".to_owned(), "13".to_owned())]);
    for target in ["build", "BUILD", "1"] {
        let build = outline(text, &args, Some(target)).unwrap();
        assert_eq!(build.base, "golang:1", "{target}");
        assert_eq!(build.steps.len(), 1);
    }
    assert_eq!(outline(text, &args, Some("base")).unwrap().base, "debian:13");
}

#[test]
fn continuation_escape_and_here_documents_are_read() {
    let continued = outline_of("FROM a\nRUN one && \\\n  # a comment\n\n  two\nRUN three\n");
    assert_eq!(continued.steps[0].arguments, "one &&   two");
    assert_eq!((continued.steps[1].arguments.as_str(), continued.steps[1].line), ("three", 6));

    let escaped = outline_of("# escape=`\nFROM a\nRUN dir `\n  c:\\\nENV A=1\n");
    assert_eq!(escaped.steps[0].arguments, "dir   c:\\");
    assert_eq!(escaped.steps.len(), 2);

    let document = outline_of("FROM a\nRUN <<EOF\nFROM inside\nmake\nEOF\nCOPY <<F1 /f\nx\nF1\nUSER b\n");
    assert!(document.steps[0].arguments.contains("FROM inside\nmake"), "{:?}", document.steps[0]);
    assert_eq!(document.steps[1].arguments, "<<F1 /f\nx\nF1");
    assert_eq!(document.steps[2].line, 9);
    assert_eq!(document.images.len(), 1);
}

#[test]
fn a_new_entrypoint_drops_the_command_before_it() {
    assert_eq!(outline_of("FROM a\nCMD x\nENTRYPOINT y").start.as_deref(), Some("y"));
    assert_eq!(outline_of("FROM a\nENTRYPOINT y\nCMD x").start.as_deref(), Some("y x"));
    assert_eq!(outline_of("FROM a\nRUN x").start, None);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let none = RequestSecrets::default();
    for (text, target, what) in [
        ("", None, "line 1"),
        ("RUN x", None, "dockerfile line 1"),
        ("FROM a\nFORM b", None, "line 2"),
        ("FROM a\nCOPY x", None, "line 2"),
        ("FROM ${X}", None, "line 1: the image's name is empty"),
        ("FROM a\nFROM UPPER", None, "line 2: 'UPPER' is no image"),
        ("FROM a\nCOPY --from=No/Such /x /y", None, "line 2"),
        ("FROM a AS b", Some("c"), "build_target is 'c'"),
        ("FROM a", Some("1"), "build_target is '1'"),
    ] {
        let said = refusal(text, target, &none);
        assert!(said.contains(what), "{text:?}: {said}");
    }
    assert_eq!(refusal("FROM scratch", None, &none), "");
    assert_eq!(refusal("FROM nullspace/base:latest", None, &none), "");
}

#[test]
fn credentials_must_fit_the_dockerfile() {
    let basic = serde_json::json!({"kind": "basic", "username": "u", "password": "hunter2"});
    let base = secrets(serde_json::json!({ "base_image_auth": basic }));
    assert_eq!(refusal("FROM r.example/x", None, &base), "");
    assert!(refusal("FROM r.example/x\nFROM r.example/y", None, &base).contains("exactly one FROM"));
    assert!(refusal("ARG T=1\nFROM r.example/x:$T", None, &base).contains("without variables"));
    assert!(refusal("FROM scratch", None, &base).contains("needs a FROM"));
    let registry = secrets(serde_json::json!({"registry_auth": [{"registry": "r.example", "auth": basic}]}));
    assert_eq!(refusal("FROM r.example/x", None, &registry), "");
    assert!(refusal("FROM x", None, &registry).contains("registry_auth[0].registry"));
    let twice = secrets(serde_json::json!({"build_secrets": [
        {"id": "a", "value": "hunter2"}, {"id": "a", "value": "x"}, {"id": "a b", "value": "x"}]}));
    let said = refusal("FROM x", None, &twice);
    assert!(said.contains("build_secrets[1].id is given twice") && said.contains("build_secrets[2].id must"), "{said}");
    assert!(!said.contains("hunter2"));
}

/// Each folder is one case: a Dockerfile, perhaps build arguments (`args.txt`, NAME=value) and a `target.txt`; and what is to
/// be said of it (`expected.txt`) or why it is refused (`error.txt`). The cases are those that BuildKit's own parser is held
/// to, written anew, and those that its Dockerfile reference shows.
#[test]
fn the_corpus_reads_as_expected() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles");
    let mut cases: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 80, "the corpus is gone");
    let update = std::env::var_os("UPDATE_DOCKERFILES").is_some();
    for case in cases {
        let optional = |name: &str| std::fs::read_to_string(case.join(name)).ok();
        let text = optional("Dockerfile").unwrap();
        let args = optional("args.txt").unwrap_or_default();
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        let args = args.lines().map(pair).collect();
        let target = optional("target.txt");
        let (file, said) = match outline(&text, &args, target.as_deref().map(str::trim)) {
            Ok(outline) => ("expected.txt", shown(&outline)),
            Err(faults) => {
                ("error.txt", faults.iter().map(|fault| format!("{} {}\n", fault.field, fault.what)).collect())
            }
        };
        if update {
            std::fs::write(case.join(file), &said).unwrap();
        }
        let expected = optional(file).unwrap_or_default();
        assert_eq!(said, expected, "{}", case.display());
        assert!(!(optional("expected.txt").is_some() && optional("error.txt").is_some()), "{}", case.display());
    }
}

/// Everything that an outline says, a line each.
fn shown(outline: &Outline) -> String {
    let mut lines = vec![format!("base {}", outline.base)];
    let mut say = |what: &str, text: &str| lines.push(format!("{what} {text}"));
    for image in &outline.images {
        let how = if image.is_from { "from" } else { "takes from" };
        say(how, &format!("{} in line {}", image.reference, image.line));
    }
    if outline.unread {
        say("and", "from images that BuildKit alone can name");
    }
    for step in &outline.steps {
        say(&step.line.to_string(), &format!("{} {}", step.instruction, step.arguments));
    }
    for (name, value) in &outline.envs {
        say("env", &format!("{name}={value}"));
    }
    for (what, text) in [("user", &outline.user), ("workdir", &outline.workdir), ("start", &outline.start)] {
        text.iter().for_each(|text| say(what, text));
    }
    for (line, warning) in &outline.warnings {
        say("warning", &format!("line {line}: {warning}"));
    }
    lines.join("\n") + "\n"
}

#[test]
fn a_text_of_any_size_is_read_in_a_bounded_time_and_room() {
    let stages = "FROM a AS b\n".repeat(60_000);
    assert_eq!(outline_of(&stages).warnings.len(), 59_999);
    let doubling = format!("FROM a\nENV A=0123456789\n{}", "ENV A=$A$A\n".repeat(1_000));
    let longest = outline_of(&doubling).envs.into_iter().map(|(_, value)| value.len()).max();
    assert!(longest.unwrap() <= 128 * 1024, "{longest:?}");
    let wide = format!("FROM a\nENV A={}\n{}", "x".repeat(100_000), "ENV B=$A\n".repeat(60_000));
    let all: usize = outline_of(&wide).envs.into_iter().map(|(_, value)| value.len()).sum();
    assert!(all < 16 << 20, "{all}");
    let nested = format!("FROM a\n{}x", "ONBUILD ".repeat(100_000));
    outline(&nested, &BTreeMap::new(), None).unwrap_err();
    let wrong = format!("FROM a\n{}", "FROG\n".repeat(100_000));
    assert_eq!(outline(&wrong, &BTreeMap::new(), None).unwrap_err().len(), 20);
    let images = format!("FROM a\n{}", "FROM UPPER\n".repeat(50_000));
    assert_eq!(outline(&images, &BTreeMap::new(), None).unwrap_err().len(), 20);
}

#[test]
fn credentials_for_what_buildkit_alone_can_name_are_taken() {
    let basic = serde_json::json!({"kind": "basic", "username": "u", "password": "hunter2"});
    let registry = secrets(serde_json::json!({"registry_auth": [{"registry": "r.example", "auth": basic}]}));
    assert_eq!(refusal("FROM ${X@Q}", None, &registry), "");
    assert_eq!(refusal("# syntax=r.example/frontend:1\nFROM x", None, &registry), "");
    assert_eq!(refusal("# syntax=r.example/frontend:1\nhello", None, &registry), "");
    assert!(refusal("# syntax=docker/dockerfile:1\nFROM x", None, &registry).contains("registry_auth[0].registry"));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(FROM |RUN |COPY |ENV |ARG |ONBUILD |# escape=`\n|\\$A|:-|%|/|<<\\[\"|\"\\]|<<EOF|EOF|\\$\\{|\\}|--from=|\\\\\n|#|=|'|\"|[a-z]| |\n|\\PC){0,40}") {
        let _ = outline(&text, &BTreeMap::new(), None);
        let _ = outline(&format!("FROM a\n{text}"), &BTreeMap::new(), None);
    }
}
