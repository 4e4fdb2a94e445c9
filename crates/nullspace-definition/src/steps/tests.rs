use serde_json::{Value, json};

use super::*;

fn problems(steps: Value) -> String {
    let steps: Vec<TemplateStep> = serde_json::from_value(steps).unwrap();
    let mut wrong = Wrong::default();
    check(&steps, &Context::default(), &mut wrong);
    wrong.into_message()
}

#[test]
fn every_step_has_its_rules() {
    for (step, what) in [
        (json!({"action": "run", "command": " "}), "steps[0].command is empty"),
        (json!({"action": "run", "command": "x", "user": "a b"}), "steps[0].user"),
        (json!({"action": "copy", "sources": [], "dst": "/x"}), "steps[0].sources must have"),
        (json!({"action": "copy", "sources": ["a"], "dst": "/x"}), "not in build_context"),
        (json!({"action": "copy", "sources": ["../a"], "dst": "/x"}), "contains '..'"),
        (json!({"action": "copy", "sources": ["."], "dst": ""}), "steps[0].dst is empty"),
        (json!({"action": "copy", "sources": [".", "*"], "dst": "/x"}), "must end with '/'"),
        (json!({"action": "copy", "sources": ["."], "dst": "/x", "mode": "9"}), "steps[0].mode"),
        (json!({"action": "copy_items", "items": []}), "steps[0].items must have"),
        (json!({"action": "copy_items", "items": [{"sources": ["a"], "dst": "b"}]}), "steps[0].items[0].sources"),
        (json!({"action": "apt_install", "packages": ["--option"]}), "must not start with '-'"),
        (json!({"action": "pip_install", "packages": []}), "steps[0].packages must have"),
        (json!({"action": "git_clone", "url": "--upload-pack=x"}), "must not start with '-'"),
        (json!({"action": "git_clone", "url": "x", "depth": 0}), "steps[0].depth"),
        (json!({"action": "workdir", "path": ""}), "steps[0].path is empty"),
        (json!({"action": "make_dir", "path": "/x", "mode": 8000}), "steps[0].mode is more"),
        (json!({"action": "make_dir", "path": format!("/{}", "x".repeat(256))}), "steps[0].path has a name of 256"),
        (json!({"action": "workdir", "path": "x/".repeat(2100)}), "steps[0].path is longer than 4095"),
        (json!({"action": "copy", "sources": ["."], "dst": "x".repeat(300)}), "steps[0].dst has a name of 300"),
        (json!({"action": "make_symlink", "path": "/x", "target": "x".repeat(300)}), "steps[0].target has a name"),
        (json!({"action": "git_clone", "url": "u", "path": "x".repeat(300)}), "steps[0].path has a name of 300"),
        (json!({"action": "remove", "path": "/./"}), "is the whole root"),
        (json!({"action": "rename", "src": "a", "dst": "\u{0}"}), "NUL"),
    ] {
        let said = problems(json!([step.clone()]));
        assert!(said.contains(what), "{step}: {said}");
    }
    assert_eq!(problems(json!([{"action": "skip_cache"}, {"action": "run", "command": "true"}])), "");
}

#[test]
fn steps_read_as_a_dockerfile() {
    for (step, lines) in [
        (json!({"action": "run", "command": "make"}), vec!["RUN make"]),
        (json!({"action": "run", "command": "it's", "user": "app"}), vec![r"RUN su -s /bin/sh -c 'it'\''s' app"]),
        (
            json!({"action": "copy", "sources": ["a"], "dst": "/b", "user": "app", "mode": 420}),
            vec!["COPY --chown=app --chmod=0644 a /b"],
        ),
        (json!({"action": "copy", "sources": ["a b"], "dst": "/b"}), vec![r#"COPY ["a b","/b"]"#]),
        (
            json!({"action": "copy_items", "items": [{"sources": ["a"], "dst": "b"}, {"sources": ["c"], "dst": "d"}]}),
            vec!["COPY a b", "COPY c d"],
        ),
        (
            json!({"action": "apt_install", "packages": ["curl", "git"]}),
            vec!["RUN apt-get update && apt-get install -y curl git && rm -rf /var/lib/apt/lists/*"],
        ),
        (
            json!({"action": "pip_install", "packages": ["flask>=2"], "g": false}),
            vec!["RUN pip install --user --no-cache-dir 'flask>=2'"],
        ),
        (json!({"action": "npm_install", "packages": ["x"], "g": true}), vec!["RUN npm install -g x"]),
        (json!({"action": "bun_install", "packages": ["x"]}), vec!["RUN bun add x"]),
        (
            json!({"action": "git_clone", "url": "https://h/r", "branch": "b", "depth": 1}),
            vec!["RUN git clone --branch b --depth 1 https://h/r /workspace"],
        ),
        (json!({"action": "workdir", "path": "/w"}), vec!["WORKDIR /w"]),
        (json!({"action": "user", "user": "app"}), vec!["USER app"]),
        (json!({"action": "make_dir", "path": "/d", "mode": "0700"}), vec!["RUN mkdir -p /d && chmod 0700 /d"]),
        (json!({"action": "make_symlink", "target": "/a", "path": "/b"}), vec!["RUN ln -s /a /b"]),
        (json!({"action": "remove", "path": "/a", "recursive": true, "force": true}), vec!["RUN rm -rf /a"]),
        (json!({"action": "rename", "src": "/a", "dst": "/b", "force": true}), vec!["RUN mv -f /a /b"]),
        (json!({"action": "skip_cache"}), vec![]),
    ] {
        let parsed: TemplateStep = serde_json::from_value(step.clone()).unwrap();
        let shown: Vec<String> =
            render(&parsed).iter().map(|line| format!("{} {}", line.instruction, line.arguments)).collect();
        assert_eq!(shown, lines, "{step}");
    }
}

/// The programs that a step runs, with their arguments.
fn programs(step: Value) -> Vec<String> {
    let step: TemplateStep = serde_json::from_value(step).unwrap();
    let Effect::Tasks(tasks) = effect(&step) else { panic!("{step:?}") };
    let line = |task| {
        let Task::Run { command, .. } = task else { return None };
        let program = command.programs[0].iter().map(|&word| word.to_owned());
        Some(program.chain(command.arguments).collect::<Vec<_>>().join("|"))
    };
    tasks.into_iter().filter_map(line).collect()
}

#[test]
fn values_are_arguments() {
    for (step, expected) in [
        (
            json!({"action": "apt_install", "packages": ["curl", "a; rm -rf /"]}),
            vec!["apt-get|update", "apt-get|install|-y|curl|a; rm -rf /"],
        ),
        (
            json!({"action": "pip_install", "packages": ["flask>=2"], "g": false}),
            vec!["pip|install|--no-cache-dir|--user|flask>=2"],
        ),
        (json!({"action": "pip_install", "packages": ["x"]}), vec!["pip|install|--no-cache-dir|x"]),
        (json!({"action": "npm_install", "packages": ["x"], "g": true}), vec!["npm|install|-g|x"]),
        (json!({"action": "npm_install", "packages": ["x"]}), vec!["npm|install|x"]),
        (json!({"action": "bun_install", "packages": ["x"], "g": true}), vec!["bun|add|--global|x"]),
        (json!({"action": "git_clone", "url": "u"}), vec!["git|clone|--|u|/workspace"]),
        (
            json!({"action": "git_clone", "url": "u", "path": "p q", "branch": "b", "depth": 1}),
            vec!["git|clone|--branch|b|--depth|1|--|u|p q"],
        ),
        (json!({"action": "run", "command": "x; y"}), vec!["/bin/sh|-c|x; y"]),
        (json!({"action": "make_dir", "path": "/a"}), vec![]),
    ] {
        assert_eq!(programs(step.clone()), expected, "{step}");
    }
}

#[test]
fn a_step_in_the_log_is_one_line_without_credentials() {
    for (step, line) in [
        (json!({"action": "run", "command": "it's", "user": "app"}), "RUN it's (as app)".to_owned()),
        (json!({"action": "run", "command": "make"}), "RUN make".to_owned()),
        (json!({"action": "run", "command": "x".repeat(3000)}), format!("RUN {}…", "x".repeat(1996))),
        (
            json!({"action": "copy_items", "items": [{"sources": ["a"], "dst": "b"}, {"sources": ["c"], "dst": "d"}]}),
            "COPY a b; COPY c d".to_owned(),
        ),
        (json!({"action": "skip_cache"}), "(what follows is not taken from the cache)".to_owned()),
        (
            json!({"action": "git_clone", "url": "https://me:token@h/r"}),
            "RUN git clone 'https://…@h/r' /workspace".to_owned(),
        ),
    ] {
        let parsed: TemplateStep = serde_json::from_value(step.clone()).unwrap();
        assert_eq!(shown(&parsed), line, "{step}");
    }
}
