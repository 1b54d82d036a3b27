"""`access.*`: who may call, and how much."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from plaudit.settings.section import Section


class TlsSettings(Section):
    """Encryption of the gRPC port and the HTTP door; the files are read again when they change (docs/access.md)."""

    certificate: str = ""
    """File with the server's certificate chain (PEM); empty: the ports are not encrypted."""
    key: str = ""
    """File with the certificate's private key (PEM)."""
    client_ca: str = ""
    """File with the authorities of callers' certificates (PEM); if it is set, every caller must show one."""

    @model_validator(mode="after")
    def _a_certificate_has_its_key(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together; set both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca needs a certificate and its key: callers' certificates come with encryption")
        return self


class TokenSettings(Section):
    """Tokens of an identity provider (OpenID Connect), for calls that need credentials (access.required)."""

    jwks: str = ""
    """The provider's public keys (JWKS): a file, or the provider's https URL; empty: no tokens are taken."""
    issuer: str = ""
    """Issuer (iss) that tokens must name."""
    audience: str = ""
    """Audience (aud) that tokens must name: this service's name at the provider."""
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...
    ] = ("RS256", "ES256")
    """Signatures that are taken."""


class LimitSettings(Section):
    """How much each may send to one replica; above it calls are RATE_LIMITED and told how long to wait. 0: no limit."""

    key_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Calls of one key or token, and items of its streams."""
    tenant_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Requests and pieces of feedback of one tenant."""
    rater_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Pieces of feedback of one rater."""
    raters_per_handle: int = Field(default=100, ge=0, le=1_000_000)
    """Different raters who may give feedback on one interaction (TOO_MANY_RATERS); 0: any number."""


class AccessSettings(Section):
    """Who may call (docs/access.md)."""

    required: bool = False
    """Every call needs an API key or a token; otherwise anyone who reaches the port may call everything."""
    remember_seconds: float = Field(default=5.0, ge=0, le=3_600)
    """How long a replica remembers a key, and so the longest time until a revocation acts."""
    tls: TlsSettings = TlsSettings()
    """Encryption."""
    tokens: TokenSettings = TokenSettings()
    """Tokens of an identity provider."""
    limits: LimitSettings = LimitSettings()
    """Limits on what each may send."""
