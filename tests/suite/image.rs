//! The images of the Dockerfile: each of its instructions runs, and the images contain what they should and no more.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{messages::root, program::scratch};

/// The time stamp of every file in the images, as the script sets it.
const SOURCE_DATE: i64 = 1_700_000_000;

fn files_in(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("is a directory") {
        let path = entry.expect("is readable").path();
        let metadata = path.symlink_metadata().expect("is readable");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{}", path.display());
        assert_eq!(metadata.permissions().mode() & 0o022, 0, "{}", path.display());
        assert_eq!(metadata.mtime(), SOURCE_DATE, "{}", path.display());
        if metadata.is_dir() {
            found.extend(files_in(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

fn json_in(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("is there")).expect("is JSON")
}

#[test]
#[ignore = "needs buildah, and so root"]
fn the_dockerfiles_images_have_the_static_program_and_the_authorities_alone() {
    let directory = scratch("images");
    let built = Command::new(root().join("tests/dockerfile/build")).arg(&directory).output();
    let built = built.expect("the script runs");
    let said = String::from_utf8_lossy(&built.stderr);
    let last: Vec<_> = said.lines().rev().take(40).collect();
    assert!(built.status.success(), "{}", last.join("\n"));

    for (image, program) in [("server", "action-executor"), ("lambda", "bootstrap")] {
        let content = directory.join(image);
        let authorities = "etc/ssl/certs/ca-certificates.crt";
        let expected = [authorities, program].map(|it| content.join(it));
        assert_eq!(files_in(&content), BTreeSet::from(expected), "{image}");
        // A static program names no loader.
        let headers =
            Command::new("readelf").arg("--program-headers").arg(content.join(program)).output();
        let headers = String::from_utf8(headers.expect("readelf runs").stdout).expect("is text");
        assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");

        let config = &json_in(&directory.join(format!("{image}.json")))["Docker"]["config"];
        assert_eq!(config["User"], "65532:65532", "{image}");
        assert_eq!(config["Entrypoint"], json!([format!("/{program}")]));
        assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "MIT");
        if image == "server" {
            assert_eq!(config["ExposedPorts"], json!({ "8000/tcp": {} }));
            let check = json!(["CMD", "/action-executor", "healthcheck"]);
            assert_eq!(config["Healthcheck"]["Test"], check);
        }
    }
    let answer = json_in(&directory.join("answer.json"));
    assert_eq!(answer["outcome"], "simulated", "{answer}");
    fs::remove_dir_all(directory).expect("is removed");
}
