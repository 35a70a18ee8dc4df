# Completion of facesyn for bash, written by `facesyn --install-completion`.
_facesyn() {
    local IFS=$'\n'
    COMPREPLY=($(_FACESYN_COMPLETE=bash _FACESYN_LINE="${COMP_LINE:0:COMP_POINT}" _FACESYN_BREAKS="$COMP_WORDBREAKS" \
        "${1/#\~/$HOME}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace 2>/dev/null  # not in bash 3
    fi
}
complete -o default -F _facesyn facesyn
