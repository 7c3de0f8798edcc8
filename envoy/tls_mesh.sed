# Makes Envoy speak TLS with the services and the nodes: `sed -f tls_mesh.sed envoy.yaml`.
#
# Both sides show certificates of the mesh's own authority, which say who they are (docs/tls.md); all of
# them from sds/, and again whenever the files are replaced. No session is resumed: a peer
# would be believed for longer than its certificate is good.

s|^\( *\)- # TLS: from \(.*\)$|\1- transport_socket:\
\1    name: envoy.transport_sockets.tls\
\1    typed_config:\
\1      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\
\1      require_client_certificate: true\
\1      disable_stateless_session_resumption: true\
\1      disable_stateful_session_resumption: true\
\1      common_tls_context:\
\1        alpn_protocols: [h2]\
\1        tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}\
\1        tls_certificate_sds_secret_configs: [{name: envoy, sds_config: {path_config_source: {path: "${SDS_DIR}/envoy.yaml"}, resource_api_version: V3}}]\
\1        combined_validation_context:\
\1          default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://infermesh/\2"}}]}\
\1          validation_context_sds_secret_config: {name: authority, sds_config: {path_config_source: {path: "${SDS_DIR}/authority.yaml"}, resource_api_version: V3}}\
\1  transport_socket_connect_timeout: 10s|

s|^\( *\)# TLS: to \(.*\)$|\1transport_socket:\
\1  name: envoy.transport_sockets.tls\
\1  typed_config:\
\1    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\
\1    max_session_keys: 0\
\1    common_tls_context:\
\1      alpn_protocols: [h2]\
\1      tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}\
\1      tls_certificate_sds_secret_configs: [{name: envoy, sds_config: {path_config_source: {path: "${SDS_DIR}/envoy.yaml"}, resource_api_version: V3}}]\
\1      combined_validation_context:\
\1        default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://infermesh/\2"}}]}\
\1        validation_context_sds_secret_config: {name: authority, sds_config: {path_config_source: {path: "${SDS_DIR}/authority.yaml"}, resource_api_version: V3}}|

s|exact: "spiffe://infermesh/node/\*"|prefix: "spiffe://infermesh/node/"|
s#exact: "\(spiffe://infermesh/service/(.*)\)"#safe_regex: {regex: "\1"}#
