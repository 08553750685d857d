"""The name that a registry gives to a request: its operators find the request by it in their logs."""

from __future__ import annotations

from collections.abc import Mapping

HEADERS = (
    "X-Request-Id",  # Harbor, Quay, GitLab, Artifactory, Zot behind Envoy, and most proxies
    "Docker-Distribution-Request-Id",  # proposed for distribution (its issue 1607)
    "X-GitHub-Request-Id",  # ghcr.io
    "X-Amzn-RequestId",  # ECR
    "X-Amz-Request-Id",  # S3, where ECR and many registries keep their blobs
    "X-Ms-Correlation-Request-Id",  # Azure Container Registry
    "X-Ms-Request-Id",  # Azure Blob Storage
    "X-GUploader-UploadID",  # Google Cloud Storage
    "Opc-Request-Id",  # Oracle
    "X-Oss-Request-Id",  # Alibaba
    "X-Cos-Request-Id",  # Tencent
    "X-Obs-Request-Id",  # Huawei
    "X-Correlation-Id",
    "X-Amz-Cf-Id",  # CloudFront, in front of ECR's public gallery
    "CF-Ray",  # Cloudflare, in front of Docker Hub's blobs
)
"""The headers that have it, the registry's own before those of what stands in front of it."""

LONGEST = 200
"""Characters of a name that is believed."""


def request_id(headers: Mapping[str, str]) -> str:
    """The name; "" if there is none that is printable and of a sensible length. ``headers`` ignore case."""
    for header in HEADERS:
        value = headers.get(header, "").strip()
        if value:
            return value if len(value) <= LONGEST and value.isascii() and value.isprintable() else ""
    return ""
