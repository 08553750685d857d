#!/usr/bin/env bash
# oci-spec 0.8.4 (crates.io), with which tools in Rust (youki, bootc, oci-client) read and write OCI's documents; rustc with cargo.
# A good guess: what is read and written again is the same document, with fields that the library does not know, or at least with those that Docker writes and the image specification reserves;
# a name is read as containerd reads it.
# What it does: a configuration loses Healthcheck, OnBuild and ArgsEscaped, a manifest what it does not know, without an error. A runtime's configuration with a capability that the library does
# not know is refused, where runc and crun warn at most. MyOrg/application is at docker.io, with a capital (containerd: a host MyOrg; crane: refused).
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.1.0"
edition = "2021"

[dependencies]
oci-spec = "=0.8.4"
serde_json = "1"
TOML
cat >src/main.rs <<'RUST'
use oci_spec::distribution::Reference;
use oci_spec::image::{ImageConfiguration, ImageManifest};
use oci_spec::runtime::Spec;
use serde_json::{json, Value};

fn lost(what: &str, before: &Value, after: &Value) {
    if let (Value::Object(before), Value::Object(after)) = (before, after) {
        for (key, value) in before {
            match after.get(key) {
                None => println!("{what}: {key} is lost"),
                Some(other) => lost(what, value, other),
            }
        }
    }
}

fn main() {
    let configuration = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": {
        "Cmd": ["sh"], "Healthcheck": {"Test": ["CMD", "true"]}, "OnBuild": ["RUN true"], "ArgsEscaped": true, "Labels": {"key": "value"}}});
    let read: ImageConfiguration = serde_json::from_value(configuration.clone()).unwrap();
    lost("configuration", &configuration, &serde_json::to_value(read).unwrap());
    let digest = format!("sha256:{}", "0".repeat(64));
    let manifest = json!({"schemaVersion": 2, "config": {"mediaType": "application/x", "digest": digest, "size": 2, "future": 1}, "layers": [], "future": 1});
    let read: ImageManifest = serde_json::from_value(manifest.clone()).unwrap();
    lost("manifest", &manifest, &serde_json::to_value(read).unwrap());
    for name in ["CAP_KILL", "CAP_FUTURE"] {
        let spec = json!({"ociVersion": "1.0.2", "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": [name]}}});
        let read = serde_json::from_value::<Spec>(spec);
        println!("{name}: {}", read.map_or_else(|error| error.to_string(), |_| "is read".into()));
    }
    let reference: Reference = "MyOrg/application".parse().unwrap();
    println!("MyOrg/application: host {}, repository {}", reference.registry(), reference.repository());
}
RUST
cargo run --quiet 2>/dev/null | tee seen
diff seen - <<'SEEN'
configuration: ArgsEscaped is lost
configuration: Healthcheck is lost
configuration: OnBuild is lost
manifest: future is lost
manifest: future is lost
CAP_KILL: is read
CAP_FUTURE: no variant for CAP_FUTURE (converted to FUTURE)
MyOrg/application: host docker.io, repository MyOrg/application
SEEN
