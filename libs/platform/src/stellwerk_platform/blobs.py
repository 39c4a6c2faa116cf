"""The blob store: S3 objects under their SHA-256, written and read by presigned URL."""

import asyncio
import base64
import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import aioboto3
from aiobotocore.config import AioConfig
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from stellwerk_platform.errors import FailedPrecondition, PlatformError, Unavailable

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef, GetObjectRequestTypeDef

log = logging.getLogger(__name__)
URL_SECONDS = 900
_REGION = "us-east-1"
_CHUNK_BYTES = 1024 * 1024


class NoSuchUpload(Exception):
    """The upload in parts was put together or dropped before."""


@dataclass(frozen=True)
class Part:
    """One part of an upload, as the store has it; `checksum` is its SHA-256 in base64."""

    number: int
    size_bytes: int
    etag: str
    checksum: str


@dataclass(frozen=True)
class Begun:
    """An upload in parts that somebody began."""

    key: str
    upload_id: str
    begin_time: datetime | None = None


class BlobStore:
    """The blobs of one bucket."""

    def __init__(self, client: "S3Client", bucket: str, url: str, credentials: Credentials) -> None:
        self._client = client
        self._bucket = bucket
        self._url = url.rstrip("/")
        self._signer = S3SigV4QueryAuth(credentials, "s3", _REGION, expires=URL_SECONDS)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, access_key: str, secret_key: str, bucket: str, *, create: bool = True
    ) -> AsyncIterator["BlobStore"]:
        """Opens a client; with `create` makes the bucket when it is not there. Raises `Unavailable`."""
        # Part checksums confuse S3 servers that are not Amazon's: only where an operation asks for them.
        config = AioConfig(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            retries={"max_attempts": 5, "mode": "standard"},
        )
        async with aioboto3.Session().client(
            "s3",
            endpoint_url=url,
            region_name=_REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        ) as client:
            store = cls(client, bucket, url, Credentials(access_key, secret_key))
            if create:
                await store._ensure_bucket()
            yield store

    async def _ensure_bucket(self) -> None:
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _status(error) != 404:
                raise _unavailable(error) from error
            await self._create_bucket()
        except BotoCoreError as error:
            raise _unavailable(error) from error

    async def _create_bucket(self) -> None:
        try:
            await self._client.create_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            # 409: another replica was faster.
            if not isinstance(error, ClientError) or _status(error) != 409:
                raise _unavailable(error) from error

    async def probe(self, prefix: str) -> None:
        """Writes, reads and deletes a small object; raises `FailedPrecondition`, `Unavailable`."""
        name, content = f"{prefix}/probe-{uuid.uuid4().hex}", b"stellwerk"
        try:
            await self._client.put_object(Bucket=self._bucket, Key=name, Body=content)
            answer = await self._client.get_object(Bucket=self._bucket, Key=name)
            found = await answer["Body"].read(len(content) + 1)
            await self._client.delete_object(Bucket=self._bucket, Key=name)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "an error"))
            raise FailedPrecondition(
                "BLOB_STORE_REFUSED",
                f"{error.operation_name} is answered with {code}.",
                "Check the bucket, and what the keys may do.",
            ) from error
        except BotoCoreError as error:
            raise _unavailable(error) from error
        if found != content:
            raise FailedPrecondition(
                "BLOB_STORE_REFUSED", "What is read is not what was written.", "Check the S3 server."
            )

    async def delete_all(self, prefix: str) -> tuple[int, int]:
        """Removes every object below a prefix; returns how many, and their bytes. Raises `Unavailable`."""
        count, size_bytes = 0, 0
        async for upload in self.uploads():
            if upload.key.startswith(f"{prefix}/"):
                await self.drop(upload)
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{prefix}/"
            )
            async for page in pages:
                found = page.get("Contents", [])
                await asyncio.gather(
                    *(self._client.delete_object(Bucket=self._bucket, Key=item["Key"]) for item in found)
                )
                count += len(found)
                size_bytes += sum(item["Size"] for item in found)
        except (ClientError, BotoCoreError) as error:
            raise _unavailable(error) from error
        return count, size_bytes

    async def size(self, workspace: str, sha256: str) -> int | None:
        """Bytes of a blob, None when it is missing; raises `Unavailable`."""
        try:
            head = await self._client.head_object(Bucket=self._bucket, Key=key(workspace, sha256))
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise _unavailable(error) from error
        except BotoCoreError as error:
            raise _unavailable(error) from error
        return int(head["ContentLength"])

    async def delete(self, workspace: str, sha256: str) -> None:
        """Removes a blob; one that is missing is no error. Raises `Unavailable`."""
        try:
            await self._client.delete_object(Bucket=self._bucket, Key=key(workspace, sha256))
        except ClientError as error:
            if _status(error) != 404:
                raise _unavailable(error) from error
        except BotoCoreError as error:
            raise _unavailable(error) from error

    async def begin_upload(self, workspace: str, sha256: str) -> str:
        """Begins an upload in parts and returns its id; raises `Unavailable`."""
        with _translated():
            answer = await self._client.create_multipart_upload(
                Bucket=self._bucket, Key=key(workspace, sha256), ChecksumAlgorithm="SHA256"
            )
        return answer["UploadId"]

    async def parts(self, workspace: str, sha256: str, upload_id: str) -> "list[Part] | None":
        """The parts that are there, by number; None for an upload that has ended. Raises `Unavailable`."""
        found: list[Part] = []
        marker = 0
        while True:
            try:
                with _translated():
                    page = await self._client.list_parts(
                        Bucket=self._bucket,
                        Key=key(workspace, sha256),
                        UploadId=upload_id,
                        PartNumberMarker=marker,
                    )
            except NoSuchUpload:
                return None
            found += [
                Part(part["PartNumber"], part["Size"], part["ETag"], part.get("ChecksumSHA256", ""))
                for part in page.get("Parts", [])
            ]
            if not page.get("IsTruncated"):
                return found
            marker = int(page["NextPartNumberMarker"])

    async def finish_upload(self, workspace: str, sha256: str, upload_id: str, parts: "list[Part]") -> bool:
        """Makes one object of the parts; False for an upload that has ended. Raises `Unavailable`."""
        chosen: list[CompletedPartTypeDef] = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumSHA256": part.checksum} for part in parts
        ]
        try:
            with _translated():
                await self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key(workspace, sha256),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": chosen},
                )
        except NoSuchUpload:
            return False
        return True

    async def abort_upload(self, workspace: str, sha256: str, upload_id: str) -> None:
        """Drops an upload and its parts; one that has ended is no error. Raises `Unavailable`."""
        await self.drop(Begun(key(workspace, sha256), upload_id))

    async def drop(self, upload: "Begun") -> None:
        """The same for an upload that `uploads` found."""
        with suppress(NoSuchUpload), _translated():
            await self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id
            )

    async def uploads(self) -> "AsyncIterator[Begun]":
        """The bucket's uploads in parts that have neither ended nor been dropped; raises `Unavailable`."""
        with _translated():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket)
            async for page in pages:
                for found in page.get("Uploads", []):
                    yield Begun(found["Key"], found["UploadId"], found["Initiated"])

    async def put(self, workspace: str, sha256: str, content: bytes) -> None:
        """Writes a small blob; raises `Unavailable`, also when the content has another digest."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        with _translated():
            await self._client.put_object(
                Bucket=self._bucket, Key=key(workspace, sha256), Body=content, ChecksumSHA256=checksum
            )

    async def read(
        self, workspace: str, sha256: str, span: tuple[int, int] | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of a blob, or of its `span` (first byte, count), a MiB at a time.

        Raises `Unavailable`, also for one that is missing.
        """
        with _translated():
            wanted: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": key(workspace, sha256)}
            if span is not None:
                wanted["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
            answer = await self._client.get_object(**wanted)
            with closing(answer["Body"]) as body:
                while chunk := await body.read(_CHUNK_BYTES):
                    yield chunk

    async def content(
        self, workspace: str, sha256: str, limit_bytes: int, span: tuple[int, int] | None = None
    ) -> bytes:
        """The same whole; raises `FailedPrecondition` when a store sends more than it said there is."""
        content = bytearray()
        async for part in self.read(workspace, sha256, span):
            content += part
            if len(content) > limit_bytes:
                raise FailedPrecondition(
                    "BLOB_STORE_REFUSED",
                    f"The store sends more than {limit_bytes:,} bytes for {sha256}.",
                    "Check the S3 server.",
                )
        return bytes(content)

    def part_url(
        self, workspace: str, sha256: str, upload_id: str, number: int, part_sha256: str, size_bytes: int
    ) -> tuple[str, dict[str, str]]:
        """A URL for the PUT of one part and the headers that it must carry: the store checks the digest.

        It is good for a body of `size_bytes` and no other.
        """
        headers = {"x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(part_sha256)).decode()}
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._presigned("PUT", workspace, sha256, _sized(headers, size_bytes), query), headers

    def upload_url(self, workspace: str, sha256: str, size_bytes: int) -> tuple[str, dict[str, str]]:
        """A URL for one PUT and the headers that it must carry: the store checks the digest.

        It is good for a body of `size_bytes` and no other.
        """
        headers = {"x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(sha256)).decode()}
        return self._presigned("PUT", workspace, sha256, _sized(headers, size_bytes)), headers

    def download_url(self, workspace: str, sha256: str) -> str:
        """A URL for GETs."""
        return self._presigned("GET", workspace, sha256, {})

    def _presigned(
        self,
        method: str,
        workspace: str,
        sha256: str,
        headers: dict[str, str],
        query: Mapping[str, str] | None = None,
    ) -> str:
        """Signed by botocore's signer alone: the client's own way resolves endpoint rules anew for
        each URL, which takes some 6 ms; a folder of 10,000 files would wait for a minute."""
        url = f"{self._url}/{self._bucket}/{key(workspace, sha256)}"
        request = AWSRequest(method, url, headers=headers, params=dict(query or {}))
        self._signer.add_auth(request)
        return str(request.url)


def _sized(headers: Mapping[str, str], size_bytes: int) -> dict[str, str]:
    """With the length, which every client sends by itself and the store holds against the signature."""
    return {**headers, "content-length": str(size_bytes)}


def key(workspace: str, sha256: str) -> str:
    """Workspaces share nothing, so that one can be deleted whole."""
    return f"{workspace}/blobs/sha256/{sha256[:2]}/{sha256[2:]}"


@contextmanager
def _translated() -> Iterator[None]:
    """Raises `NoSuchUpload` and `Unavailable` for what S3 and its client raise."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
            raise NoSuchUpload from error
        raise _unavailable(error) from error
    except (BotoCoreError, TimeoutError) as error:
        raise _unavailable(error) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _unavailable(error: Exception) -> PlatformError:
    # The text names addresses, which are nothing for callers.
    log.warning("The blob store does not answer: %.300s", error)
    return Unavailable(
        "BLOB_STORE_UNAVAILABLE",
        "The blob store does not answer.",
        "Check the S3 server (`stellwerk status`) and its free space, then try again.",
    )
