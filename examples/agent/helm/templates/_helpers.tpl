{{- define "agent.name" -}}
{{- printf "%s-agent" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "agent.selector" -}}
app.kubernetes.io/name: tao-flows-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "agent.probe" -}}
exec:
  command:
    - python3
    - -ISc
    - "import socket as s; s.socket(s.AF_UNIX, s.SOCK_SEQPACKET).connect('/run/tao-flows/agent.sock')"
timeoutSeconds: 5
{{- end -}}
